"""What the steps of a run read, count and clip."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from lmkit.batch import Batch
from lmkit.data.plan import Plan
from lmkit.train import batches as reading
from lmkit.train.batches import Rank, StepBatches, read_ahead, workers_for
from lmkit.train.loop import Step, train_steps
from lmkit.train.parallelism.replicated import Replicated
from lmkit.train.setup import Counts


class Listing:
    """A task that notes which pieces it was given."""

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()

    def collate(self, examples: list[list[dict[str, Any]]], *, epoch: int, packed: bool) -> Batch:
        self.seen.update(piece["piece"] for example in examples for piece in example)
        epochs = {"epoch": torch.tensor([epoch])}
        return Batch({}, torch.zeros(1, dtype=torch.long), extra=epochs)


class Data:
    """Nine examples of one to three pieces."""

    def __init__(self) -> None:
        counts = [1, 3, 1, 2, 1, 1, 2, 1, 1]
        ends = np.cumsum(counts)
        self.groups = [
            list(range(end - count, end)) for count, end in zip(counts, ends, strict=True)
        ]
        self.lengths = np.array([5, 90, 7, 40, 3, 8, 33, 2, 9])

    def slots(self, *, packed: bool) -> np.ndarray:
        return self.lengths

    def examples(self, numbers: list[int]) -> list[list[dict[str, Any]]]:
        return [[{"piece": piece} for piece in self.groups[number]] for number in numbers]


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("budget", [1, 50, 10**6])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_piece_is_read_once_an_epoch(ranks: int, budget: int, epoch: int) -> None:
    data, plan, task = Data(), Plan(9, 4, seed=13), Listing()
    for rank in range(ranks):
        batches = StepBatches(data, plan, task, rank=Rank(rank, ranks), budget=budget, packed=False)  # type: ignore[arg-type]
        for step in range(3 * epoch, 3 * epoch + 3):
            micro = [batch for batch in batches[step] if not batch.is_idle]
            assert {batch.extra["epoch"].item() for batch in micro} <= {epoch}
    pieces = Counter(piece for group in data.groups for piece in group)
    # the last step has one example: the ranks without one read it too, and count nothing of it
    (left,) = plan.examples(3 * epoch + 2)
    pieces.update(dict.fromkeys(data.groups[left], ranks - 1))
    assert task.seen == pieces


def test_a_step_is_the_same_wherever_it_is_read_from(tiny: Any) -> None:
    prepared = tiny.prepared(tiny.recipe("mlm"))
    plan = Plan(len(prepared.encoded["train"]), 2, 13)

    def batches() -> StepBatches:
        return StepBatches(prepared.encoded["train"], plan, prepared.task, budget=40, packed=True)

    straight = batches()
    in_order = [straight[step] for step in range(5)]
    for step in (4, 0, 3):
        for one, other in zip(batches()[step], in_order[step], strict=True):
            torch.testing.assert_close(asdict(one), asdict(other), rtol=0, atol=0)


class Recorder(torch.optim.SGD):
    """Keeps the norm of the gradients and changes nothing."""

    def step(self, closure: Any = None) -> None:
        gradients = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        self.norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()


def steps_of(tiny: Any, recipe: Any, **options: Any) -> list[tuple[Step, float, float]]:
    """Steps with the norm of the gradients, and the rate, that the optimizer saw."""
    model = tiny.model(recipe)
    recorder = Recorder(model.parameters(), lr=0.0)
    workers = {"workers": options.pop("workers", 0)}
    recipe = tiny.merged(recipe, hardware=workers)
    setup = tiny.setup(recipe, model, optimizer=recorder, total=3)
    return [
        (step, recorder.norm, recorder.param_groups[0]["lr"])
        for step in train_steps(setup, **options)
    ]


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
        assert step.items == len(plan.examples(number))  # a text of several windows counts once
        assert rate == step.learning_rate == pytest.approx(0.3 * (1 - number / 3))


def test_waiting_for_a_slow_batch_is_counted_and_workers_hide_it_behind_the_step(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe("classification")
    cls = type(tiny.prepared(recipe).task)
    collate = cls.collate

    prepared = multiprocessing.Value("i", 0)

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.2)
        batch = collate(*arguments, **options)
        with prepared.get_lock():
            prepared.value += 1
        return batch

    monkeypatch.setattr(cls, "collate", slow)
    alone = [step.waited_seconds for step, _, _ in steps_of(tiny, recipe, workers=0)]
    all_batches = 2 * prepared.value
    deadline = time.monotonic() + 300

    def share_done() -> None:  # a step that takes longer than the batches after it
        while prepared.value < all_batches and time.monotonic() < deadline:
            time.sleep(0.01)

    steps = steps_of(tiny, recipe, share_done=share_done, workers=2)
    hidden = [step.waited_seconds for step, _, _ in steps]
    assert min(alone) >= 0.2
    assert min(hidden[1:]) < 0.2  # the first is awaited while the workers start


def test_workers_are_taken_where_waiting_costs_more_than_a_core() -> None:
    found = {
        (waited, share): workers_for(waited, share)
        for waited in (0.01, 0.3, 0.8)
        for share in (1, 2, 3, 16)
    }
    assert {number for (_, share), number in found.items() if share <= 2} == {0}
    assert (
        [found[waited, 3] for waited in (0.01, 0.3, 0.8)]
        == [found[waited, 16] for waited in (0.01, 0.3, 0.8)]
        == [0, 1, 2]
    )


class Slow:
    """Steps that take time to prepare and tell in which process they were; the loss of none is computed."""

    budget = 1

    def __getitem__(self, step: int) -> Any:
        time.sleep(0.01)
        return step, torch.utils.data.get_worker_info() is not None


def read(monkeypatch: pytest.MonkeyPatch, *, cores: int, work: float) -> list[tuple[int, bool]]:
    """Step and whether a worker prepared it, of 20 steps from the fifth on."""
    monkeypatch.setattr(reading, "share_of_cores", lambda: cores)
    found = []
    for step, micro, _ in read_ahead(Slow(), 5, 25, workers="auto", pinned=False):  # type: ignore[arg-type]
        time.sleep(work)
        assert micro[0] == step
        found.append(micro)
    return found  # type: ignore[return-value]


def test_workers_come_once_the_first_steps_show_that_training_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_worker = [False] * (1 + reading.WATCHED_STEPS) + [True] * (19 - reading.WATCHED_STEPS)
    assert read(monkeypatch, cores=8, work=0.0) == list(zip(range(5, 25), by_worker, strict=True))
    assert read(monkeypatch, cores=2, work=0.0) == [(step, False) for step in range(5, 25)]


def test_a_signal_and_the_share_of_time_travel_with_the_step(tiny: Any) -> None:
    found = steps_of(
        tiny,
        tiny.recipe("classification", train={"schedule": "linear", "learning_rate": 0.3}),
        share_done=iter([0.0, 0.5, 1.0]).__next__,
        should_stop=iter([False, True, False]).__next__,
    )
    assert [step.share for step, _, _ in found] == [0.0, 0.5, 1.0]
    assert [step.interrupted for step, _, _ in found] == [False, True, False]
    assert [rate for _, _, rate in found] == pytest.approx([0.3, 0.15, 0.0])


class OneOfTwo:
    """A process that hears what the other one sends."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, *, is_main_process: bool):
        self.is_main_process, self.heard = is_main_process, 0.0

    def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        self.sent = tensor
        return tensor + self.heard


class Counted:
    """A micro-batch with so many labels, tokens and places."""

    def __init__(self, items: int, tokens: int, slots: int):
        self.items, self.tokens, self.slots = items, tokens, slots


def test_a_signal_on_any_rank_is_every_ranks_and_the_time_is_the_first_ones(tiny: Any) -> None:
    first, second = OneOfTwo(is_main_process=True), OneOfTwo(is_main_process=False)
    said: list[Any] = [
        (first, [Counted(1, 10, 16)], False, 0.25),
        (second, [Counted(1, 20, 16), Counted(1, 0, 16)], True, 0.75),
    ]
    setup = tiny.setup(tiny.recipe("classification"))
    for process, micro, stop, share in said:
        setup.parallelism = Replicated(process)
        setup.count(micro, stop=stop, share=share)
    first.heard, second.heard = second.sent, first.sent  # type: ignore[assignment]
    for process, micro, stop, share in said:
        setup.parallelism = Replicated(process)
        assert setup.count(micro, stop=stop, share=share) == Counts(3, 30, 48, True, 0.25)


def test_dropout_is_drawn_anew_for_every_step_and_rank_and_alike_when_repeated(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps have the same rows here, and the weights stay."""

    def losses(rank: int, dropout: float) -> list[float]:
        recipe = tiny.recipe("classification", train={"dropout": dropout, "batch_size": 10})
        with monkeypatch.context() as patch:
            patch.setattr(type(tiny.accelerator), "process_index", property(lambda _: rank))
            return [step.loss.item() for step, _, _ in steps_of(tiny, recipe)]

    assert len({*losses(0, 0.3), *losses(1, 0.3)}) == 6
    assert losses(1, 0.3) == losses(1, 0.3)
    assert len({*losses(0, 0.0), *losses(1, 0.0)}) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_going_on_costs_the_same_at_step_100_and_100000(
    tiny: Any, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in calls: examples read, orders made, batches collated."""
    prepared = tiny.prepared(tiny.recipe("mlm"))
    encoded = prepared.encoded["train"]
    calls: Counter[str] = Counter()
    for owner, name in (
        (Plan, "order"),
        (type(encoded), "examples"),
        (type(prepared.task), "collate"),
    ):
        method = getattr(owner, name)

        def counting(
            *arguments: Any, _name: str = name, _method: Any = method, **options: Any
        ) -> Any:
            calls[_name] += 1
            assert calls[_name] < 100
            return _method(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)
    costs = []
    plan = Plan(len(encoded), 1, 13)
    for first in (plan.steps_per_epoch * 100, plan.steps_per_epoch * 100_000):
        calls.clear()
        batches = StepBatches(
            encoded, plan, prepared.task, rank=Rank(0, processes), budget=10**6, packed=False
        )
        assert [
            step for step, *_ in read_ahead(batches, first, first + 2, workers=0, pinned=False)
        ] == [
            first,
            first + 1,
        ]
        costs.append(dict(calls))
    assert costs[0] == costs[1]
    assert costs[0]["examples"] == 2


def test_other_processes_and_micro_batches_go_on_with_the_same_examples(tiny: Any) -> None:
    """What a step is made of, from the middle of an epoch on, however it is dealt."""
    prepared = tiny.prepared(tiny.recipe("mlm"))
    encoded = prepared.encoded["train"]
    plan = Plan(len(encoded), 3, 13)

    def examples(step: int, ranks: int, budget: int) -> list[list[int]]:
        parts = [
            StepBatches(
                encoded, plan, prepared.task, rank=Rank(r, ranks), budget=budget, packed=False
            )[step]
            for r in range(ranks)
        ]
        rows = [
            row
            for part in parts
            for batch in part
            if not batch.is_idle
            for row in batch.inputs["input_ids"]
        ]
        return sorted(
            [token for token in row.tolist() if token != prepared.task.tokenizer.pad_token_id]
            for row in rows
        )

    for step in (1, plan.steps_per_epoch + 1, 1001):
        whole = examples(step, 1, 10**6)
        assert whole
        assert examples(step, 2, 10**6) == examples(step, 1, 1) == examples(step, 2, 1) == whole
