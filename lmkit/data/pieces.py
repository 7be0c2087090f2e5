"""The pieces of a split: a sequence over an Arrow file that is mapped into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from lmkit.batch import Columns, Piece
from lmkit.data.arrow import batch_of

Column = tuple[
    np.ndarray[Any, Any], np.ndarray[Any, Any] | None
]  # numbers, and where each list of them begins and ends


class Pieces(Sequence[Piece]):
    """What ``write_pieces`` wrote; memory does not grow with their number.

    Args:
        path: the Arrow file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        self._batches = self._table.to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._columns: dict[int, dict[str, Column]] = {}  # of the batches that were read from

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes map the file themselves
        return Pieces, (self.path,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Piece: ...
    @overload
    def __getitem__(self, index: slice) -> list[Piece]: ...
    def __getitem__(self, index: int | slice) -> Piece | list[Piece]:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.take([index % len(self)])[0]

    def __iter__(self) -> Iterator[Piece]:
        return (self[index] for index in range(len(self)))

    def take(self, numbers: Sequence[int]) -> list[Piece]:
        """Return these pieces, in this order."""
        owners = (np.searchsorted(self._starts, numbers, side="right") - 1).tolist()
        starts = self._starts.tolist()
        return [
            {
                name: _value(*column, number - starts[owner])
                for name, column in self._batch(owner).items()
            }
            for number, owner in zip(numbers, owners, strict=True)
        ]

    def _batch(self, number: int) -> dict[str, Column]:
        if number not in self._columns:
            batch = self._batches[number]
            self._columns[number] = {
                name: _numbers(batch.column(name)) for name in batch.schema.names
            }
        return self._columns[number]

    @property
    def names(self) -> list[str]:
        return list(self._table.column_names)

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """Return a column that has a whole number for each piece."""
        return np.concatenate(
            [_numbers(batch.column(name))[0] for batch in self._batches], dtype=np.int64
        )

    def is_list(self, name: str) -> bool:
        return name in self.names and pa.types.is_list(self._table.schema.field(name).type)

    def sizes(self, name: str) -> np.ndarray[Any, Any]:
        """Count the numbers that each piece has in a column of lists."""
        return np.concatenate(
            [np.diff(_view(batch.column(name).offsets)) for batch in self._batches], dtype=np.int64
        )


def _numbers(column: pa.Array) -> Column:
    if pa.types.is_list(column.type):
        return _view(column.values), _view(column.offsets)
    return _view(column), None


def _view(array: pa.Array) -> np.ndarray[Any, Any]:
    """Return the numbers of an array without nulls; its own ``to_numpy`` imports pandas."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    return np.frombuffer(
        array.buffers()[1] or b"", dtype, len(array), array.offset * dtype.itemsize
    )


def _value(numbers: np.ndarray[Any, Any], ends: np.ndarray[Any, Any] | None, at: int) -> Any:
    return numbers[at].item() if ends is None else numbers[ends[at] : ends[at + 1]].tolist()


def write_pieces(path: Path, batches: Iterable[Columns]) -> None:
    """Write columns to a file, batch by batch: integers in 32 bits, numbers in 64; memory stays that of one batch."""
    writer = None
    with pa.OSFile(str(path), "wb") as sink:
        for columns in batches:
            if writer is None:
                schema = pa.schema(
                    [(name, _type_of(values[0])) for name, values in columns.items()]
                )
                writer = pa.ipc.new_stream(sink, schema)
            writer.write_batch(batch_of(columns, schema))
        if writer is not None:
            writer.close()


def _type_of(value: Any) -> pa.DataType:
    if isinstance(value, list):
        return pa.list_(pa.int32())
    return pa.float64() if isinstance(value, float) else pa.int32()
