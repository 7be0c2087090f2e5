"""Blocks of text in which every token is predicted once."""

from __future__ import annotations

from itertools import chain
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lmkit.batch import IGNORE
from lmkit.tasks.clm.task import blocks

TEXT = "Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my purse, I thought I would sail."


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 20))
def test_every_token_but_the_first_is_predicted_once_from_the_one_before(
    tokens: list[int], size: int
) -> None:
    cut = blocks(tokens, size)
    assert list(chain.from_iterable(labels for _, labels in cut)) == tokens[1:]
    assert list(chain.from_iterable(inputs for inputs, _ in cut)) == tokens[:-1]
    assert all(len(inputs) == len(labels) <= size for inputs, labels in cut)
    assert all(len(inputs) == size for inputs, _ in cut[:-1])


def test_a_document_begins_with_its_mark_and_its_end_is_predicted(tiny: Any) -> None:
    task = tiny.prepared(tiny.recipe("clm")).task
    columns = task.encode([{"id": 0, "text": TEXT}, {"id": 1, "text": "a"}])
    text = task.tokenizer(TEXT)["input_ids"]
    first = [i for i, row in enumerate(columns["row"]) if row == 0]
    assert len(first) > 2
    assert list(chain.from_iterable(columns["labels"][i] for i in first)) == [
        *text,
        task.tokenizer.eos_token_id,
    ]
    assert list(chain.from_iterable(columns["input_ids"][i] for i in first)) == [
        task.tokenizer.bos_token_id,
        *text,
    ]
    assert columns["length"] == [len(ids) for ids in columns["input_ids"]]
    assert max(columns["length"]) == task.max_length


def test_labels_stand_where_their_logits_do(tiny: Any) -> None:
    task = tiny.prepared(tiny.recipe("clm")).task
    pad = task.tokenizer.pad_token_id
    examples = [[{"input_ids": [3, 4, 5], "labels": [4, 5, 6]}, {"input_ids": [7], "labels": [8]}]]
    apart = task.collate(examples)
    assert apart.inputs["input_ids"].tolist() == [[3, 4, 5], [7, pad, pad]]
    assert apart.labels.tolist() == [[4, 5, 6], [8, IGNORE, IGNORE]]
    assert apart.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    together = task.collate(examples, packed=True)
    assert together.inputs["input_ids"].tolist() == [[3, 4, 5, 7]]
    assert together.labels.tolist() == [[4, 5, 6, 8]]
    assert together.segments is not None
    assert together.segments.tolist() == [[1, 1, 1, 2]]
    assert together.inputs["position_ids"].tolist() == [[0, 1, 2, 0]]
    assert apart.items == together.items == 4
