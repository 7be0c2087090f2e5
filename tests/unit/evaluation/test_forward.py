"""The road of predictions: in chunks, in batches that fit, and with the model as it was afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmkit.errors import ModelError
from lmkit.evaluation import forward
from lmkit.evaluation.forward import Forward, forward_tokens


@pytest.mark.parametrize("task", ["classification", "ner"])
def test_chunks_of_rows_change_nothing(
    tiny: Any, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is that of a chunk; a text of several windows may not fall between two."""
    recipe = tiny.recipe(task, data={"max_length": 8, "max_rows": 5})
    prepared, model = tiny.prepared(recipe), tiny.model(recipe)
    encoded = prepared.encoded["validation"]
    assert len(encoded.pieces) > len(encoded.rows)
    one_by_one = Forward(prepared.task, model, tiny.processes, 1)
    whole = list(one_by_one.predictions(encoded))
    monkeypatch.setattr(forward, "CHUNK_ROWS", 2)
    assert list(one_by_one.predictions(encoded)) == whole


def test_a_pass_fits_the_caches_of_a_cpu_unless_text_is_generated(tiny: Any) -> None:
    classifier, translator = (
        tiny.prepared(tiny.recipe(task)).task for task in ("classification", "translation")
    )
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert forward_tokens(10**6, classifier, cpu) == 1024 * torch.get_num_threads()
    assert forward_tokens(77, classifier, cpu) == 77  # the memory allows no more
    assert forward_tokens(10**6, classifier, gpu) == forward_tokens(10**6, translator, cpu) == 10**6


def test_predicting_leaves_the_model_training(tiny: Any) -> None:
    recipe = tiny.recipe("classification", train={"dropout": 0.5})
    prepared, model = tiny.prepared(recipe), tiny.model(recipe).train()
    encoded = prepared.encoded["validation"]
    computed = Forward(prepared.task, model, tiny.processes, 64)
    losses = [computed.mean_loss(encoded) for _ in range(2)]
    assert losses[0] == losses[1]
    list(computed.predictions(encoded))
    assert model.training


@pytest.mark.parametrize("way", ["mean_loss", "predictions"])
def test_a_batch_that_raises_leaves_the_model_training(
    tiny: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe("classification")
    prepared, model = tiny.prepared(recipe), tiny.model(recipe).train()

    def fail(*_: Any) -> None:
        raise RuntimeError("a fault of the model's")

    for name in ("loss", "predict"):
        monkeypatch.setattr(type(prepared.task), name, fail)
    computed = Forward(prepared.task, model, tiny.processes, 64)
    compute = {
        "mean_loss": computed.mean_loss,
        "predictions": lambda encoded: list(computed.predictions(encoded)),
    }[way]
    with pytest.raises(RuntimeError, match="a fault of the model's"):
        compute(prepared.encoded["validation"])
    assert model.training
    assert not torch.is_inference_mode_enabled()


def test_an_output_that_is_not_a_number_names_its_row(tiny: Any) -> None:
    recipe = tiny.recipe("ner")
    prepared, model = tiny.prepared(recipe), tiny.model(recipe)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    computed = Forward(prepared.task, model, tiny.processes, 64)
    with pytest.raises(ModelError, match="row 0: the model's output is not a number"):
        next(computed.predictions(prepared.encoded["validation"]))
