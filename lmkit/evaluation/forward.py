"""The one road of predictions: rows -> batches under a token budget -> a record each, in order, exactly once.

Where memory ends, a batch is computed in halves. Every part carries its row, ranks send (row, parts), and the first rank
keeps one record per row: duplicates cannot happen by construction [trl#7010].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from lmkit import console
from lmkit.batch import Batch, Piece, Row
from lmkit.data.encode import Encoded
from lmkit.data.plan import micro_batches
from lmkit.errors import ModelError
from lmkit.models.memory import in_parts
from lmkit.records import Record
from lmkit.tasks.base import Task

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
CHUNK_ROWS = 2048  # memory is that of a chunk, however many rows there are
# what a core's caches hold of a small model's pass: 8192 took one thread 1.45 times as long (6 x 384 BERT, bf16)
THREAD_TOKENS = 1024


class Processes(Protocol):
    """What predictions ask of the processes that share them; ``train/parallelism/`` answers."""

    @property
    def rank(self) -> int: ...
    @property
    def ranks(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the run's precision while active."""

    def gather(self, values: list[T]) -> list[T]:
        """Return the values of all processes."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes."""

    def first_rank_says(self, value: T) -> T:
        """Return the first process's value on every process."""


@dataclass(frozen=True)
class Forward:
    """A model that computes without gradients; between two calls it is as it was, in training or not.

    Args:
        budget: tokens of a pass that the memory allows.
    """

    task: Task
    model: Any
    processes: Processes
    budget: int

    @property
    def rank(self) -> int:
        return self.processes.rank

    @property
    def ranks(self) -> int:
        return self.processes.ranks

    def predictions(self, encoded: Encoded) -> Iterator[Record]:
        """Yield the record of every row of a split, in order; nothing on ranks other than the first."""
        owners = encoded.pieces.column("row")
        starts = range(0, len(encoded.rows), CHUNK_ROWS)
        for start in console.progress_bar(
            starts, total=len(starts), what="predicting", unit="chunk"
        ):
            rows = encoded.rows[start : start + CHUNK_ROWS]
            first, last = owners.searchsorted([start, start + CHUNK_ROWS]).tolist()
            yield from self.records(rows, encoded.take(range(first, last)), first_row=start)

    def records(
        self, rows: Sequence[Row], pieces: list[Piece], *, first_row: int = 0
    ) -> Iterator[Record]:
        """Yield the records of rows whose pieces are in memory.

        Args:
            first_row: the number of the first row, as the pieces count it.

        Raises:
            ModelError: the output for a row is not a number.
        """
        costs = np.asarray([self.task.cost(piece) for piece in pieces], dtype=np.int64)

        def predict(
            numbers: Sequence[int], batch: Batch, chosen: list[Piece]
        ) -> list[tuple[int, dict[str, Any]]]:
            return list(zip(numbers, self.task.predict(self.model, batch, chosen), strict=True))

        parts = self._compute(costs, lambda numbers: [pieces[i] for i in numbers], predict)
        parts = self.processes.gather(parts)
        if self.rank:
            return
        by_row: list[list[dict[str, Any]]] = [[] for _ in rows]
        for number, part in sorted(dict(parts).items()):
            by_row[pieces[number]["row"] - first_row].append(part)
        for row, parts_of_row in zip(rows, by_row, strict=True):
            record = Record(self.task.combine(row, parts_of_row))
            refuse_nan(record, place=f"row {record['id']}")
            yield record

    def mean_loss(self, encoded: Encoded) -> float:
        """Return the token-weighted loss of a split, without predictions; independent of the batches [transformers#39241]."""
        import torch

        device = self.processes.device

        def sums_of(
            numbers: Sequence[int], batch: Batch, pieces: list[Piece]
        ) -> list[torch.Tensor]:
            items = torch.tensor(float(batch.items), dtype=torch.double, device=device)
            return [torch.stack([self.task.loss(self.model, batch).double(), items])]

        lengths = encoded.pieces.column("length")
        sums = torch.zeros(2, dtype=torch.double, device=device)
        for part in self._compute(lengths, encoded.take, sums_of):
            sums += part
        total, items = self.processes.sum(sums).tolist()
        return total / items if items else math.nan

    def _compute(
        self,
        costs: np.ndarray,
        take: Callable[[Sequence[int]], list[Piece]],
        compute: Callable[[Sequence[int], Batch, list[Piece]], list[T]],
    ) -> list[T]:
        """Return the results of this rank's batches.

        Args:
            costs: ``(pieces,)`` tokens that each piece takes.
            take: the pieces of these numbers. compute: the results of a batch of them.
        """
        device = self.processes.device
        budget = forward_tokens(self.budget, self.task, device)

        def compute_at_once(numbers: Sequence[int]) -> list[T]:
            pieces = take(numbers)
            batch = self.task.collate([[piece] for piece in pieces]).to(device)
            return compute(numbers, batch, pieces)

        results: list[T] = []
        with self._evaluating():
            batches = micro_batches(np.arange(len(costs)), costs, budget)
            for numbers in batches[self.rank :: self.ranks]:
                results += in_parts(compute_at_once, numbers.tolist())
        return results

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Compute as in evaluation; autocast casts the weights once while it lasts."""
        import torch

        was_training = self.model.training
        self.model.eval()
        try:
            with self._faster(), torch.inference_mode(), self.processes.autocast():
                yield
        finally:
            self.model.train(was_training)

    def _faster(self) -> AbstractContextManager[Any]:
        """Compute the model with the fast paths that are shown to be right on it, as ``hardware.fast`` says."""
        if self.task.recipe.hardware.fast == "off":
            return nullcontext()
        from lmkit.fast.registry import choose_for_evaluation

        return choose_for_evaluation(self.model, self.processes.device).applied(self.model)


def forward_tokens(budget: int, task: Task, device: torch.device) -> int:
    """Return the tokens of a pass: at most ``budget``, and on a CPU no more than its caches hold.

    Where text is generated a step reads one token of each sentence, so batches stay as large as the memory allows.
    """
    import torch

    if device.type != "cpu" or task.problem.writes:
        return budget
    return min(budget, THREAD_TOKENS * torch.get_num_threads())


def refuse_nan(answer: Mapping[str, Any], *, place: str) -> None:
    """Refuse an answer with something that is not a number: JSON could not say it.

    Raises:
        ModelError: names the row or text.
    """
    if _has_nan(answer):
        raise ModelError(
            "the model's output is not a number",
            place=place,
            remedy="its training diverged, or its weights are broken: train it anew, with a lower train.learning_rate",
        )


def _has_nan(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Mapping):
        return any(_has_nan(entry) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_nan(entry) for entry in value)
    return False
