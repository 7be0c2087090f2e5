"""Texts longer than the model reads: in windows, cut, or refused."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from lmkit.batch import IGNORE
from lmkit.errors import DataError
from lmkit.tasks.base import TooLong
from lmkit.tasks.registry import problem

SHORT = "Yay. Another good phone interview."
LONG = " ".join([SHORT] * 12)


def task_of(tiny: Any, **data: Any) -> Any:
    recipe = tiny.recipe("classification")
    prepared = tiny.prepared(recipe)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})
    return prepared.task.problem.task(recipe, prepared.task.facts, prepared.task.tokenizer)


def pairs_of(tiny: Any, **data: Any) -> Any:
    prepared = tiny.prepared(tiny.recipe("pairs"))
    recipe = prepared.task.recipe
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})
    return prepared.task.problem.task(recipe, prepared.task.facts, task_of(tiny).tokenizer)


def rows(*texts: str) -> list[dict[str, Any]]:
    return [{"id": number, "text": text, "label": "positive"} for number, text in enumerate(texts)]


def test_windows_overlap_and_leave_no_token_out(tiny: Any) -> None:
    task = task_of(tiny, long_text="windows", overlap=0.25)
    columns = task.encode(rows(SHORT, LONG, SHORT))
    assert columns["row"] == sorted(columns["row"])
    windows = [
        ids[1:-1] for ids, row in zip(columns["input_ids"], columns["row"], strict=True) if row == 1
    ]
    overlap = int(0.25 * (32 - 2 - 1))
    rebuilt = windows[0] + [token for window in windows[1:] for token in window[overlap:]]
    assert rebuilt == task.tokenizer(LONG, add_special_tokens=False, verbose=False)["input_ids"]
    assert all(left[-overlap:] == right[:overlap] for left, right in pairwise(windows))
    assert set(columns["label"]) == {1}
    assert max(columns["length"]) == 32
    assert not any(columns["cut"])


def test_the_head_alone_is_read_and_counted_as_cut(tiny: Any) -> None:
    columns = task_of(tiny, long_text="head").encode(rows(SHORT, LONG))
    assert (columns["row"], columns["cut"]) == ([0, 1], [0, 1])
    assert columns["length"][1] == 32


def test_head_and_tail_are_a_quarter_and_three_of_what_is_read(tiny: Any) -> None:
    task = task_of(tiny, long_text="head_tail")
    columns = task.encode(rows(SHORT, LONG))
    whole = task.tokenizer(LONG, verbose=False)["input_ids"]
    assert (columns["row"], columns["cut"], columns["length"][1]) == ([0, 1], [0, 1], 32)
    assert columns["input_ids"][1] == [
        *whole[: 1 + 7],
        *whole[-24:],
    ]  # [CLS], 7 of 30, then 23 and [SEP]
    assert columns["input_ids"][0] == task.tokenizer(SHORT)["input_ids"]


@pytest.mark.parametrize("how", ["windows", "head", "head_tail"])
@pytest.mark.parametrize(
    ("first", "second"), [(SHORT, LONG), (LONG, SHORT), (LONG, LONG), (SHORT, SHORT)]
)
def test_of_a_long_pair_both_texts_are_read(tiny: Any, how: str, first: str, second: str) -> None:
    task = pairs_of(tiny, long_text=how)
    columns = task.encode([{"id": 0, "text": first, "text_pair": second, "label": "no"}])
    ids = [
        task.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for text in (first, second)
    ]
    read: list[set[int]] = [set(), set()]
    for piece, types, length in zip(
        columns["input_ids"], columns["token_type_ids"], columns["length"], strict=True
    ):
        assert length == len(piece) <= 32
        end = types.index(1)
        parts = piece[1 : end - 1], piece[end:-1]
        assert (piece[0], piece[end - 1], piece[-1]) == (
            task.tokenizer.cls_token_id,
            *[task.tokenizer.sep_token_id] * 2,
        )
        for side, part in enumerate(parts):
            assert set(part) <= set(ids[side])
            read[side] |= set(part)
    is_long = len(ids[0]) + len(ids[1]) + 3 > 32
    both_long = min(map(len, ids)) > 14
    assert sum(columns["cut"]) == int(is_long and (how != "windows" or both_long))
    if not sum(columns["cut"]):
        assert read == [set(ids[0]), set(ids[1])]
    if how == "head" and (first, second) == (
        SHORT,
        LONG,
    ):  # as the tokenizer itself cuts the longer one
        assert columns["input_ids"] == [
            task.tokenizer(first, second, truncation="longest_first", max_length=32)["input_ids"]
        ]


def test_long_texts_are_refused_with_their_length(tiny: Any) -> None:
    task = task_of(tiny, long_text="error")
    with pytest.raises(TooLong) as refused:
        task.encode(rows(SHORT, LONG, SHORT, LONG))
    tokens = len(task.tokenizer(LONG, verbose=False)["input_ids"])
    assert refused.value.rows == [(1, tokens), (3, tokens)]
    assert f"{tokens} tokens, more than data.max_length = 32" in str(refused.value)


def test_probabilities_are_averaged_over_the_windows_of_a_text(tiny: Any) -> None:
    parts = [{"scores": [p, 1 - p], "nll": -math.log(p), "items": 1} for p in (0.9, 0.3, 0.6)]
    record = task_of(tiny).combine({"id": 7, "text": LONG, "label": "negative"}, parts)
    assert record["probabilities"] == pytest.approx({"negative": 0.6, "positive": 0.4})
    assert (record["id"], record["gold"], record["prediction"], record["items"]) == (
        7,
        "negative",
        "negative",
        1,
    )
    assert record["score"] == pytest.approx(0.6)
    assert record["nll"] == pytest.approx(-math.log(0.9 * 0.3 * 0.6) / 3)


def test_a_long_text_is_the_mean_of_its_windows_read_one_by_one(tiny: Any) -> None:
    task = task_of(tiny)
    model = tiny.model(tiny.recipe("classification"))
    columns = task.encode(rows(LONG))
    pieces = [
        {name: values[i] for name, values in columns.items()} | {"piece": i}
        for i in range(len(columns["row"]))
    ]
    with torch.inference_mode():
        together = task.combine(rows(LONG)[0], task.predict(model, task.collate([pieces]), pieces))
        alone = [
            model(torch.tensor([piece["input_ids"]])).logits[0].softmax(-1) for piece in pieces
        ]
    assert list(together["probabilities"].values()) == pytest.approx(
        torch.stack(alone).mean(0).tolist(), abs=1e-6
    )


def test_a_long_text_counts_once_in_the_loss(tiny: Any) -> None:
    task = task_of(tiny)
    model = tiny.model(tiny.recipe("classification"))
    columns = task.encode(rows(SHORT, LONG))
    pieces = [
        {name: values[i] for name, values in columns.items()} | {"piece": i}
        for i in range(len(columns["row"]))
    ]
    with torch.inference_mode():
        batch = task.collate([pieces[:1], pieces[1:]])
        losses = [
            task.loss(model, task.collate([[piece]])).item() / piece["weight"] for piece in pieces
        ]
        assert batch.items == pytest.approx(2)
        assert task.loss(model, batch).item() == pytest.approx(
            losses[0] + sum(losses[1:]) / (len(pieces) - 1), rel=1e-5
        )


def test_texts_without_gold_have_labels_that_do_not_count(tiny: Any) -> None:
    task = task_of(tiny)
    columns = task.encode(task.problem.rows([SHORT], task.facts))
    assert columns["label"] == [IGNORE]


def test_one_label_is_not_a_classification() -> None:
    with pytest.raises(DataError, match="all rows have one label: 'ham'"):
        problem("classification").learn([], ["ham"])


def test_an_answer_does_not_depend_on_the_texts_beside_it_where_the_last_position_is_read(
    tiny: Any,
) -> None:
    """XLNet's classifier sums a text up by the last position of its row: padding stands before the text."""
    recipe = tiny.recipe("classification", "xlnet")
    model, task = tiny.model(recipe), tiny.prepared(recipe).task
    columns = task.encode(rows(SHORT, "So lucky."))
    pieces = [{name: values[i] for name, values in columns.items()} for i in range(2)]
    with torch.inference_mode():
        together = task.predict(model, task.collate([[piece] for piece in pieces]), pieces)
        (alone,) = task.predict(model, task.collate([[pieces[1]]]), [pieces[1]])
    assert together[1]["scores"] == pytest.approx(alone["scores"], abs=1e-6)
