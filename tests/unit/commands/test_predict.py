"""``lmkit predict``: what becomes of a text that the model reads in windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lmkit.commands.predict import Predictor
from lmkit.errors import ModelError

SHORT = "a word"
LONG = [
    "good morning to all of you " * 12 + "and now something sad and quite bad " * 12,
    "so many words " * 40 + "!?! " * 40,
]


@pytest.mark.parametrize("kind", ["classification", "multi_label", "regression"])
def test_the_answer_to_a_long_text_is_the_mean_over_all_its_windows(tiny: Any, kind: str) -> None:
    predictor = Predictor(tiny.base(kind), ["hardware.precision=fp32"])
    task, model = predictor.task, predictor.model
    torch.manual_seed(0)
    for weight in (
        *model.base_model.parameters(),
        model.classifier.weight,
    ):  # else windows differ too little to tell
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    predictor.forward = replace(predictor.forward, budget=1)  # a window a pass
    texts = [LONG[0], SHORT, LONG[1]]
    answers = predictor.predict(texts)
    assert [answer["text"] for answer in answers] == texts
    for text, answer in zip(texts, answers, strict=True):
        columns = task.encode(task.problem.rows([text], task.facts))
        windows = columns["input_ids"]
        assert (len(windows) > 2) == (text != SHORT)
        with torch.inference_mode():
            logits = torch.cat([model(torch.tensor([ids])).logits for ids in windows]).double()
        each = {
            "classification": logits.softmax(-1),
            "multi_label": logits.sigmoid(),
            "regression": logits,
        }[kind]
        found = (
            [answer["prediction"]]
            if kind == "regression"
            else list(answer["probabilities"].values())
        )
        assert found == pytest.approx(each.mean(0).tolist(), abs=1e-5)
        if text != SHORT:  # neither the first window alone says so nor the last
            assert (each[[0, -1]] - each.mean(0)).abs().amax(-1).min() > 1e-2


@pytest.mark.parametrize("kind", ["classification", "regression", "ner", "mlm"])
def test_an_answer_that_is_not_a_number_is_an_error_and_no_json(tiny: Any, kind: str) -> None:
    predictor = Predictor(tiny.base(kind), ["hardware.precision=fp32"])
    with torch.no_grad():
        for parameter in predictor.model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(ModelError, match="the model's output is not a number"):
        predictor.predict("a [MASK] word" if kind == "mlm" else SHORT)


def test_texts_are_answered_in_halves_where_memory_ends(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(tiny.base("classification"), ["hardware.precision=fp32"])
    texts = [f"text number {i}" for i in range(8)]
    whole = predictor.predict(texts)
    predict, sizes = predictor.task.predict, []

    def with_little_memory(model: Any, batch: Any, pieces: Any) -> Any:
        sizes.append(len(pieces))
        if len(pieces) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(model, batch, pieces)

    monkeypatch.setattr(predictor.task, "predict", with_little_memory)
    answers = predictor.predict(texts)
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    assert [answer["id"] for answer in answers] == list(range(8))
    for answer, reference in zip(answers, whole, strict=True):
        assert answer["score"] == pytest.approx(reference["score"], abs=1e-6)
