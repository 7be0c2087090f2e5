"""The ground that tasks and models share: rows, pieces, batches, and how pieces become padded tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

Row = dict[str, Any]
Piece = dict[str, Any]
Columns = dict[str, list[Any]]
Batch = dict[str, "torch.Tensor"]
IGNORE = -100  # a label that does not count


MODEL_INPUTS = frozenset(
    {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "position_ids",
        "decoder_input_ids",
        "decoder_attention_mask",
    }
)


def pad(sequences: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Ragged integers -> ``(len(sequences), longest)``, padded at the end.

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
    """Rows that follow one another in ``flat`` -> ``(len(lengths), longest)``."""
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
        columns: column -> padding value.
        packed: also returns ``segment_ids`` (0 for padding, then 1, 2, ... by piece) and
            ``position_ids`` that start anew in every piece.
        left: padding stands before the pieces, not behind them.

    Returns:
        ``(rows, longest)`` tensors, with ``attention_mask``.
    """
    import numpy as np

    pieces, first = flat(examples), next(iter(columns))
    lengths = [len(piece[first]) for piece in pieces]
    counts = (
        [len(example) for example in examples] if packed else [1] * len(pieces)
    )  # pieces of each row
    numbers = [number for count in counts for number in range(1, count + 1)]
    ends = np.cumsum([0, *counts])
    rows = np.add.reduceat([*lengths, 0], ends[:-1]).tolist() if counts else []
    batch = {
        name: _padded(
            np.concatenate([np.asarray(piece[name], dtype=np.int64) for piece in pieces]),
            rows,
            value,
            left=left,
        )
        for name, value in columns.items()
    }
    batch["attention_mask"] = _padded(np.ones(sum(lengths), np.int64), rows, 0, left=left)
    if packed:
        batch["segment_ids"] = _padded(np.repeat(numbers, lengths), rows, 0)
        batch["position_ids"] = _padded(
            np.concatenate([np.arange(length) for length in lengths]), rows, 0
        )
    return batch


def counted(labels: torch.Tensor) -> torch.Tensor:
    """Which labels count: all but -100, and of numbers all but NaN."""
    return ~labels.isnan() if labels.is_floating_point() else labels != IGNORE


def uncounted(labels: torch.Tensor) -> torch.Tensor:
    """Labels of the same shape and type of which none counts."""
    import torch

    return torch.full_like(labels, math.nan if labels.is_floating_point() else IGNORE)


def flat(examples: Sequence[Sequence[Piece]]) -> list[Piece]:
    """The pieces of examples one after the other: the rows of an unpacked batch."""
    return [piece for example in examples for piece in example]


def keyed_rng(*key: int) -> Any:
    """A NumPy generator that depends on the key alone: (seed, epoch, piece), whatever was drawn before.

    Philox is a counter-based generator (Salmon et al. 2011), so neighbouring keys are independent.
    """
    import numpy as np

    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
