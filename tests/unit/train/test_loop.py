"""What the steps of a run read, count and clip."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from lmkit.data.plan import Plan
from lmkit.train.loop import Step, StepBatches, train_steps


class Listing:
    """A task that notes which pieces it was given."""

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()

    def collate(self, examples: list[list[dict[str, Any]]], *, epoch: int, packed: bool) -> dict[str, Any]:
        self.seen.update(piece["piece"] for example in examples for piece in example)
        return {"labels": torch.zeros(1, dtype=torch.long), "epoch": epoch}


class Data:
    """Nine examples of one to three pieces."""

    def __init__(self) -> None:
        counts = [1, 3, 1, 2, 1, 1, 2, 1, 1]
        ends = np.cumsum(counts)
        self.groups = [list(range(end - count, end)) for count, end in zip(counts, ends, strict=True)]
        self.lengths = np.array([5, 90, 7, 40, 3, 8, 33, 2, 9])

    def slots(self, *, packed: bool) -> np.ndarray:
        return self.lengths

    def example(self, number: int) -> list[dict[str, Any]]:
        return [{"piece": piece} for piece in self.groups[number]]


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("budget", [1, 50, 10**6])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_piece_is_read_once_an_epoch(ranks: int, budget: int, epoch: int) -> None:
    data, plan, task = Data(), Plan(9, 4, seed=13), Listing()
    for rank in range(ranks):
        batches = StepBatches(data, plan, task, rank=rank, ranks=ranks, budget=budget, packed=False)  # type: ignore[arg-type]
        for step in range(3 * epoch, 3 * epoch + 3):
            micro = [batch for batch in batches[step] if "idle" not in batch]
            assert {batch["epoch"] for batch in micro} <= {epoch}
    pieces = Counter(piece for group in data.groups for piece in group)
    # the last step has one example: the ranks without one read it too, and count nothing of it
    (left,) = plan.examples(3 * epoch + 2)
    pieces.update(dict.fromkeys(data.groups[left], ranks - 1))
    assert task.seen == pieces


def test_a_step_is_the_same_wherever_it_is_read_from(tiny: Any) -> None:
    prepared = tiny.prepared(tiny.recipe("mlm"))
    plan = Plan(len(prepared.encoded["train"]), 2, 13)

    def batches() -> StepBatches:
        return StepBatches(prepared.encoded["train"], plan, prepared.task, rank=0, ranks=1, budget=40, packed=True)

    straight = batches()
    in_order = [straight[step] for step in range(5)]
    for step in (4, 0, 3):
        for one, other in zip(batches()[step], in_order[step], strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)


class Recorder(torch.optim.SGD):
    """Keeps the norm of the gradients and changes nothing."""

    def step(self, closure: Any = None) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()


def steps_of(tiny: Any, recipe: Any, **options: Any) -> list[tuple[Step, float, float]]:
    """Steps with the norm of the gradients, and the rate, that the optimizer saw."""
    prepared = tiny.prepared(recipe)
    plan = Plan(len(prepared.encoded["train"]), recipe.train.batch_size, recipe.seed)
    batches = StepBatches(prepared.encoded["train"], plan, prepared.task, rank=0, ranks=1, budget=64, packed=False)
    model = tiny.model(recipe)
    model, optimizer = tiny.accelerator.prepare(model, Recorder(model.parameters(), lr=0.0))
    defaults: dict[str, Any] = {"share_done": lambda: None, "asked_to_stop": lambda: False}
    steps = train_steps(
        model,
        optimizer,
        batches,
        prepared.task,
        tiny.accelerator,
        first=0,
        total=3,
        packing=None,
        workers=0,
        **(defaults | options),
    )
    return [(step, optimizer.optimizer.norm, optimizer.param_groups[0]["lr"]) for step in steps]


def test_gradients_are_scaled_down_to_the_limit_and_their_norm_before_is_told(tiny: Any) -> None:
    free = steps_of(tiny, tiny.recipe("classification", train={"max_grad_norm": 1e9}))
    clipped = steps_of(tiny, tiny.recipe("classification", train={"max_grad_norm": 0.01}))
    for (step, norm, _), (told, scaled, _) in zip(free, clipped, strict=True):
        assert step.grad_norm.item() == pytest.approx(norm, rel=1e-5)
        assert norm > 0.01
        assert told.grad_norm.item() == pytest.approx(norm, rel=1e-5)
        assert scaled == pytest.approx(0.01, rel=1e-3)


def test_tokens_and_slots_are_counted_and_the_rate_is_set(tiny: Any) -> None:
    recipe = tiny.recipe("classification", train={"schedule": "linear", "learning_rate": 0.3})
    found = steps_of(tiny, recipe)
    encoded = tiny.prepared(recipe).encoded["train"]
    plan = Plan(len(encoded), 4, 13)
    for number, (step, _, rate) in enumerate(found):
        assert step.number == number + 1
        assert step.tokens == encoded.lengths[plan.examples(number)].sum() <= step.slots
        assert step.items == sum(len(encoded.groups[example]) for example in plan.examples(number))
        assert rate == step.learning_rate == pytest.approx(0.3 * (1 - number / 3))


def test_a_signal_and_the_share_of_time_travel_with_the_step(tiny: Any) -> None:
    found = steps_of(
        tiny,
        tiny.recipe("classification", train={"schedule": "linear", "learning_rate": 0.3}),
        share_done=iter([0.0, 0.5, 1.0]).__next__,
        asked_to_stop=iter([False, True, False]).__next__,
    )
    assert [step.share for step, _, _ in found] == [0.0, 0.5, 1.0]
    assert [step.interrupted for step, _, _ in found] == [False, True, False]
    assert [rate for _, _, rate in found] == pytest.approx([0.3, 0.15, 0.0])
