"""The micro-batches of each step: a pure function of the step's number, read ahead by loader workers where that pays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from lmkit import console
from lmkit.batch import Batch, flat
from lmkit.data.encode import Encoded
from lmkit.data.plan import Plan, deal, micro_batches, rows_to_share
from lmkit.errors import TrainingStopped
from lmkit.tasks.base import Task
from lmkit.train.device import share_of_cores

WATCHED_STEPS = (
    10  # whether they wait for data decides on hardware.workers: auto; not the slow first
)
WORTH_A_WORKER = 0.02  # share of the time


@dataclass(frozen=True)
class Rank:
    """One of several processes."""

    number: int = 0
    of: int = 1


class StepBatches(torch.utils.data.Dataset[list[Batch]]):
    """Step number (from 0) -> the micro-batches of one rank. A pure function of the number, so it resumes anywhere.

    Args:
        budget: tokens of a micro-batch, padding included.
        packed: rows are shared by several texts.
    """

    def __init__(
        self,
        encoded: Encoded,
        plan: Plan,
        task: Task,
        *,
        rank: Rank = Rank(),
        budget: int,
        packed: bool,
    ):
        self.encoded, self.plan, self.task = encoded, plan, task
        self.rank, self.budget, self.packed = rank, budget, packed
        self.slots = encoded.slots(packed=packed and task.problem.packs)
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, step: int) -> list[Batch]:
        epoch, examples = self._examples(step)
        mine = deal(examples, self.encoded.lengths, self.rank.of)[self.rank.number]
        if not len(mine):  # fewer examples than ranks: take part in the step all the same
            return [self.idle(step)]
        return [self._collate(part, epoch) for part in self.cut(mine)]

    def _examples(self, step: int) -> tuple[int, np.ndarray]:
        """Return the epoch and the examples of a step."""
        epoch, _ = self.plan.position(step)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self.plan.order(epoch))
        return epoch, self.plan.examples(step, self._order[1])

    def idle(self, step: int) -> Batch:
        """Make a small micro-batch of a step in which nothing counts."""
        epoch, examples = self._examples(step)
        return self._collate(examples[[self.slots[examples].argmin()]], epoch).idle()

    @property
    def share(self) -> int:
        """Return the number of examples of one rank in a step."""
        return -(-self.plan.batch_size // self.rank.of)

    def longest(self, tokens: int) -> np.ndarray:
        """Return the longest examples that fit into so many tokens: at least one, at most a step's."""
        order = np.argsort(-self.slots, kind="stable")
        return order[: max(1, min(tokens // int(self.slots[order[0]]), self.share))]

    def collate(self, examples: np.ndarray) -> Batch:
        return self._collate(examples, 0)

    def largest(self, step: int) -> int:
        """Count the tokens, padding included, of a step's largest micro-batch that can be divided; 0: there is none."""
        mine = deal(self.plan.examples(step), self.encoded.lengths, self.rank.of)[self.rank.number]
        divisible = [part for part in self.cut(mine) if len(part) > 1]
        sizes = [len(part) * int(self.slots[part].max()) for part in divisible]
        return max(sizes, default=0)

    def cut(self, examples: np.ndarray, budget: int | None = None) -> list[np.ndarray]:
        """Cut examples into micro-batches.

        Args:
            budget: tokens of one, where it has several examples; None: as in training.
        """
        tokens = self.budget if budget is None else budget
        return micro_batches(examples, self.slots, tokens, padded=not self.packed)

    def _collate(self, examples: np.ndarray, epoch: int) -> Batch:
        pieces = self.encoded.examples(examples.tolist())
        batch = self.task.collate(pieces, epoch=epoch, packed=self.packed)
        if self.packed and not self.task.problem.packs:
            places = rows_to_share([piece["length"] for piece in flat(pieces)])
            if places is not None:
                batch.shared = torch.from_numpy(places)
        return batch


def read_ahead(
    batches: StepBatches, first: int, total: int, *, workers: int | Literal["auto"], pinned: bool
) -> Iterator[tuple[int, list[Batch], float]]:
    """Yield each step's number, its micro-batches, and the seconds it took until they were there.

    Workers read ahead; all is read anew once the budget or their number has changed.
    """
    step = first
    number = 0 if workers == "auto" else workers
    watched = range(first + 1, first + 1 + WATCHED_STEPS)
    begun = waited = 0.0
    while step < total:
        budget = batches.budget
        loader = torch.utils.data.DataLoader(
            batches,
            batch_size=None,
            sampler=range(step, total),
            num_workers=number,
            pin_memory=pinned,
            collate_fn=_as_they_are,
        )
        asked = time.perf_counter()
        for micro in _alive(loader):
            took = time.perf_counter() - asked
            yield step, micro, took
            begun, waited = (asked, took) if step == watched.start else (begun, waited + took)
            step += 1
            asked = time.perf_counter()
            if workers == "auto" and step == watched.stop:
                share = waited / (asked - begun)
                number = workers_for(share, share_of_cores())
                if number:
                    console.say(
                        f"loader workers: {number}, for {share:.0%} of the time went into waiting for data"
                    )
                    break
            if batches.budget != budget:
                break


def workers_for(waited: float, share: int) -> int:
    """Return the number of loader workers for ``hardware.workers: auto``: none where waiting is cheap or cores are few.

    Args:
        waited: share of the time that went into preparing batches, without workers.
        share: cores that there are for each process.
    """
    if share <= 2 or waited < WORTH_A_WORKER:
        return 0
    # one keeps up while preparing a step takes no longer than computing it
    return 1 if waited < 0.5 else 2


def _alive(loader: torch.utils.data.DataLoader[list[Batch]]) -> Iterator[list[Batch]]:
    """Yield what the loader gives, with a message in place of a traceback where one of its workers dies."""
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise TrainingStopped(
                f"a process that prepares batches died: {str(error).splitlines()[0].rstrip('. ')}\n"
                "  often the memory is full: fewer hardware.workers, or 0; --resume goes on from the last checkpoint"
            ) from None
        yield batch


def _as_they_are(micro: list[Batch]) -> list[Batch]:
    return micro
