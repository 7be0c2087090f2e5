"""The ground that tasks and models share: rows, pieces, batches, and how pieces become padded tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

Row = dict[str, Any]
Piece = dict[str, Any]
Columns = dict[str, list[Any]]
IGNORE = -100  # a label that does not count


@dataclass
class Batch:
    """Pieces as padded tensors: what a model reads of them, and the labels aligned with its logits.

    Args:
        inputs: what the model's forward pass takes, by name; each ``(rows, ...)``.
        labels: ``IGNORE`` where nothing counts; of numbers NaN.
        segments: ``(rows, length)`` in packed rows: 0 for padding, then 1, 2, ... by piece.
        weights: ``(rows,)`` shares that the rows have in the loss; None: each counts fully.
        extra: what the task alone reads, by name; each ``(rows, ...)``.
        shared: where ``fast/unpadding.py`` puts the tokens of padded rows.
        is_idle: no label counts; its process has nothing to do in this step.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    segments: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    shared: torch.Tensor | None = None
    is_idle: bool = False

    @property
    def items(self) -> float:
        """Count the labels that matter, each as much as its row weighs; a whole number over the examples of a step."""
        counts = counted(self.labels)
        if self.weights is None:
            return int(counts.sum())
        return float((counts.reshape(len(self.weights), -1).sum(1) * self.weights).sum())

    @property
    def tokens(self) -> int:
        """Count the tokens, padding left out."""
        return 0 if self.is_idle else int(self.inputs["attention_mask"].sum())

    @property
    def slots(self) -> int:
        """Count the places for tokens, padding included."""
        if self.is_idle:
            return 0
        places = self.inputs["attention_mask"] if self.shared is None else self.shared
        return places.numel()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Copy all tensors to a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Copy all tensors to pinned memory: torch's DataLoader looks for this name."""
        return self._map(lambda tensor: tensor.pin_memory())

    def idle(self) -> Batch:
        """Copy the batch so that no label counts."""
        return replace(self, labels=uncounted(self.labels), is_idle=True)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        segments, weights, shared = (
            None if tensor is None else change(tensor)
            for tensor in (self.segments, self.weights, self.shared)
        )
        return Batch(
            inputs={name: change(tensor) for name, tensor in self.inputs.items()},
            labels=change(self.labels),
            segments=segments,
            weights=weights,
            extra={name: change(tensor) for name, tensor in self.extra.items()},
            shared=shared,
            is_idle=self.is_idle,
        )


def pad(sequences: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Pad ragged integers at the end, to ``(len(sequences), longest)``.

    >>> pad([[1, 2], [3]], 0).tolist()
    [[1, 2], [3, 0]]
    """
    import numpy as np

    flat = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    return _padded(
        np.concatenate([np.empty(0, np.int64), *flat]), [len(sequence) for sequence in flat], value
    )


def _padded(
    flat: np.ndarray, lengths: Sequence[int], value: int, *, left: bool = False
) -> torch.Tensor:
    """Pad rows that follow one another in ``flat``, to ``(len(lengths), longest)``."""
    import numpy as np
    import torch

    out = np.full((len(lengths), max(lengths, default=0)), value, dtype=np.int64)
    is_there = np.arange(out.shape[1]) < np.array(lengths, dtype=np.int64)[:, None]
    out[is_there[:, ::-1] if left else is_there] = flat
    return torch.from_numpy(out)


def lay_out(
    examples: Sequence[Sequence[Piece]],
    *,
    columns: Mapping[str, int],
    packed: bool,
    left: bool = False,
) -> Batch:
    """Place pieces in the rows of a batch: one a row, or (``packed``) all pieces of an example in one.

    Args:
        examples: pieces by example; each piece has every column as a list of one length.
        columns: column -> padding value. All are inputs of the model but ``labels``.
        packed: the batch has ``segments``, too, and ``position_ids`` that start anew in every piece.
        left: padding stands before the pieces, not behind them.

    Returns:
        A batch with ``attention_mask``. No label counts where ``columns`` names none.
    """
    import numpy as np
    import torch

    pieces, first = flat(examples), next(iter(columns))
    lengths = [len(piece[first]) for piece in pieces]
    counts = (
        [len(example) for example in examples] if packed else [1] * len(pieces)
    )  # pieces of each row
    numbers = [number for count in counts for number in range(1, count + 1)]
    ends = np.cumsum([0, *counts])
    rows = np.add.reduceat([*lengths, 0], ends[:-1]).tolist() if counts else []
    inputs = {
        name: _padded(
            np.concatenate([np.asarray(piece[name], dtype=np.int64) for piece in pieces]),
            rows,
            value,
            left=left,
        )
        for name, value in columns.items()
    }
    mask = _padded(np.ones(sum(lengths), np.int64), rows, 0, left=left)
    labels = inputs.pop("labels", None)
    batch = Batch(inputs, torch.full_like(mask, IGNORE) if labels is None else labels)
    inputs["attention_mask"] = mask
    if packed:
        batch.segments = _padded(np.repeat(numbers, lengths), rows, 0)
        inputs["position_ids"] = _padded(
            np.concatenate([np.arange(length) for length in lengths]), rows, 0
        )
    return batch


def counted(labels: torch.Tensor) -> torch.Tensor:
    """Tell which labels count: all but -100, and of numbers all but NaN."""
    return ~labels.isnan() if labels.is_floating_point() else labels != IGNORE


def uncounted(labels: torch.Tensor) -> torch.Tensor:
    """Return labels of the same shape and type that do not count."""
    import torch

    return torch.full_like(labels, math.nan if labels.is_floating_point() else IGNORE)


def flat(examples: Sequence[Sequence[Piece]]) -> list[Piece]:
    """Return the pieces of examples one after the other: the rows of an unpacked batch."""
    return [piece for example in examples for piece in example]


def keyed_rng(*key: int) -> Any:
    """Return a NumPy generator that depends on the key alone: (seed, epoch, piece), whatever was drawn before.

    Philox is a counter-based generator (Salmon et al. 2011), so neighbouring keys are independent.
    """
    import numpy as np

    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
