"""What ``lmkit predict`` says of raw text: fills of masks, continuations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmkit.errors import DataError, RecipeError
from lmkit.tasks.base import TooLong


def subject(tiny: Any, task: str, **sections: Any) -> tuple[Any, Any]:
    recipe = tiny.recipe(task, **sections)
    return tiny.model(recipe), tiny.prepared(recipe).task


def test_every_mask_is_filled_with_the_likeliest_tokens(tiny: Any) -> None:
    model, task = subject(tiny, "mlm")
    text = "I [MASK] about you [MASK]."
    (answer,) = task.problem.responder(task).respond(model, task.problem.rows([text], task.facts))
    assert answer.keys() == {"id", "text", "fills"}
    assert [len(fills) for fills in answer["fills"]] == [5, 5]
    encoded = task.tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        probabilities = (
            model(**encoded)
            .logits[0]
            .softmax(-1)[encoded["input_ids"][0] == task.tokenizer.mask_token_id]
        )
    for fills, expected in zip(answer["fills"], probabilities, strict=True):
        scores = [fill["score"] for fill in fills]
        assert scores == pytest.approx(sorted(expected.tolist(), reverse=True)[:5], abs=1e-6)
        assert task.tokenizer.convert_tokens_to_ids(fills[0]["token"]) is not None


def test_a_text_without_a_mask_is_refused(tiny: Any) -> None:
    model, task = subject(tiny, "mlm")
    with pytest.raises(DataError, match=r"text 2: no \[MASK\] in this text: nothing to fill"):
        task.problem.responder(task).respond(
            model, task.problem.rows(["a [MASK]", "no mask"], task.facts)
        )


def test_a_text_to_fill_that_is_too_long_is_refused(tiny: Any) -> None:
    model, task = subject(tiny, "mlm")
    with pytest.raises(TooLong, match="text 1: "):
        task.problem.responder(task).respond(
            model, task.problem.rows(["I know " * 40 + "[MASK]"], task.facts)
        )


def test_a_continuation_is_greedy_and_leaves_the_prompt_out(tiny: Any) -> None:
    model, task = subject(tiny, "clm", generation={"num_beams": 1, "max_new_tokens": 3})
    torch.manual_seed(0)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    (answer,) = task.problem.responder(task).respond(
        model, task.problem.rows(["I know"], task.facts)
    )
    ids = [task.tokenizer.bos_token_id, *task.tokenizer("I know")["input_ids"]]
    expected: list[int] = []
    for _ in range(3):
        with torch.inference_mode():
            expected.append(int(model(torch.tensor([ids + expected])).logits[0, -1].argmax()))
    assert answer == {
        "id": 0,
        "text": "I know",
        "continuation": task.tokenizer.decode(expected, skip_special_tokens=True),
    }


def test_beams_of_a_continuation_are_weighed_by_its_length_as_asked(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = subject(
        tiny, "clm", generation={"num_beams": 3, "length_penalty": 2.5, "max_new_tokens": 3}
    )
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        model, "generate", lambda inputs, **options: asked.update(options) or inputs
    )
    task.problem.responder(task).respond(model, task.problem.rows(["I know"], task.facts))
    assert asked["length_penalty"] == 2.5
    with pytest.raises(
        RecipeError, match=r"generation\.length_penalty: has no effect with one beam"
    ):
        subject(tiny, "clm", generation={"num_beams": 1, "length_penalty": 2.5})


def test_a_prompt_that_leaves_no_room_is_refused(tiny: Any) -> None:
    model, task = subject(tiny, "clm")
    with pytest.raises(TooLong, match="text 1: "):
        task.problem.responder(task).respond(
            model, task.problem.rows(["I know " * 2000], task.facts)
        )
