from __future__ import annotations

import math
from dataclasses import asdict

import torch

from lmkit.batch import IGNORE, Batch

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])


def batch_of(labels: torch.Tensor, weights: torch.Tensor | None = None) -> Batch:
    return Batch({"input_ids": MASK * 7, "attention_mask": MASK}, labels, weights=weights)


def test_labels_that_matter_are_counted_and_weighted() -> None:
    labels = torch.tensor([[1, 2, IGNORE], [3, IGNORE, IGNORE]])
    assert batch_of(labels).items == 3
    assert isinstance(batch_of(labels).items, int)
    assert batch_of(labels, torch.tensor([0.5, 1.0])).items == 2
    numbers = torch.tensor([[0.0], [math.nan]])
    assert batch_of(numbers).items == 1


def test_tokens_are_counted_without_padding_and_places_with_it() -> None:
    batch = batch_of(torch.tensor([1, 0]))
    assert (batch.tokens, batch.slots) == (4, 6)
    batch.shared = torch.tensor([[0, 1, 2, 3]])
    assert batch.slots == 4


def test_an_idle_batch_has_its_shapes_and_counts_nothing() -> None:
    idle = batch_of(torch.tensor([[1, 2, 3], [1, IGNORE, 2]])).idle()
    assert idle.is_idle
    assert (idle.items, idle.tokens, idle.slots) == (0, 0, 0)
    assert idle.labels.shape == (2, 3)
    assert torch.equal(idle.inputs["attention_mask"], MASK)
    assert batch_of(torch.tensor([[0.5], [1.5]])).idle().items == 0


def test_everything_is_moved() -> None:
    batch = batch_of(torch.tensor([1, 0]), torch.tensor([1.0, 0.5]))
    batch.segments, batch.shared, batch.extra = MASK, MASK, {"seen": MASK}
    moved = asdict(batch.idle().to("meta"))
    tensors = [*moved.pop("inputs").values(), *moved.pop("extra").values()]
    assert moved.pop("is_idle")
    assert {tensor.device.type for tensor in [*tensors, *moved.values()]} == {"meta"}
