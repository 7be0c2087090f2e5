"""The rows that tasks get: a sequence over an Arrow file that is mapped into memory, each row with its place in the data."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from lmkit.data.arrow import batch_of, numbers
from lmkit.data.row import DataFile, Row, hash_of
from lmkit.tasks.fields import Field

BATCH_ROWS, BATCH_CHARACTERS = (
    1000,
    1 << 23,
)  # of texts; words and other entries of lists count as one each


class Rows(Sequence[Row]):
    """The usable rows of one split, in the order of its files; memory does not grow with their number.

    ``rows[i]`` has the task's fields and ``id``: which row of the split it was, counted from 0, rejected ones too.

    Args:
        path: the Arrow file. files: where the rows came from. fingerprint: a hash of all that decides them.
        rejected: the rows left out: ``{"place", "problem", "id", "row"}``.
        selection: which rows of the Arrow file these are; None: all.
    """

    def __init__(
        self,
        path: Path,
        *,
        files: list[DataFile],
        rejected: list[Row],
        fingerprint: str,
        selection: np.ndarray[Any, np.dtype[np.int64]] | None = None,
    ):
        self.path, self.files, self.rejected, self.fingerprint = path, files, rejected, fingerprint
        self._selection = selection
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._batches = self._table.to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.names = [name for name in self._table.column_names if not name.startswith("_")]

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes map the file themselves
        return _open_rows, (self.path, self.files, self.rejected, self.fingerprint, self._selection)

    @property
    def schema(self) -> pa.Schema:
        """Return the columns of the Arrow file: ``names``, and where each row comes from."""
        return self._table.schema

    def __len__(self) -> int:
        return self._table.num_rows if self._selection is None else len(self._selection)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return self._take(np.arange(*index.indices(len(self))), self.names)
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._take(np.array([index % len(self)]), self.names)[0]

    def __iter__(self) -> Iterator[Row]:
        return itertools.chain.from_iterable(self.batches())

    def batches(
        self, size: int = BATCH_ROWS, *, names: list[str] | None = None
    ) -> Iterator[list[Row]]:
        """Yield all rows in order, ``size`` at a time; with ``names``, these columns alone."""
        for start in range(0, len(self), size):
            yield self._take(np.arange(start, min(start + size, len(self))), names or self.names)

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column: mapped, not copied, unless the rows are a selection."""
        column = self._table[name]
        return (
            column if self._selection is None else column.take(numbers(self._selection, np.int64))
        )

    def place(self, index: int, *, word: int | None = None) -> str:
        """``file:line`` of a row, or of one word of it where the file has a line for each."""
        row = self._take(
            np.array([index]),
            [n for n in ("_file", "_line", "_lines") if n in self._table.column_names],
        )[0]
        line = row["_lines"][word] if word is not None and row.get("_lines") else row["_line"]
        return f"{self.files[row['_file']].path}:{line}"

    def select(self, indices: Iterable[int], *, rejected: list[Row] | None = None) -> Rows:
        """Return these rows alone, in this order; ``rejected`` takes the place of the list of rows left out."""
        chosen = np.fromiter(indices, np.int64)
        if self._selection is not None:
            chosen = self._selection[chosen]
        fingerprint = hash_of([self.fingerprint, hashlib.sha256(chosen.tobytes()).hexdigest()])
        rejected = self.rejected if rejected is None else rejected
        return Rows(
            self.path,
            files=self.files,
            rejected=rejected,
            fingerprint=fingerprint,
            selection=chosen,
        )

    def without(self, indices: Sequence[int], *, rejected: list[Row]) -> Rows:
        """Return all rows but these; ``rejected`` as of ``select``."""
        return self.select(np.delete(np.arange(len(self)), indices), rejected=rejected)

    def _take(self, indices: np.ndarray[Any, Any], names: list[str]) -> list[Row]:
        if self._selection is not None:
            indices = self._selection[indices]
        owners = np.searchsorted(self._starts, indices, side="right") - 1
        rows: list[Row] = []
        for run in np.split(np.arange(len(indices)), np.flatnonzero(np.diff(owners)) + 1):
            if len(run):
                owner = owners[run[0]]
                within = numbers(indices[run] - self._starts[owner], np.int64)
                rows += self._batches[owner].select(names).take(within).to_pylist()
        return rows


def _open_rows(
    path: Path, files: list[DataFile], rejected: list[Row], fingerprint: str, selection: Any
) -> Rows:
    return Rows(path, files=files, rejected=rejected, fingerprint=fingerprint, selection=selection)


# ---------------------------------------------------------------------------------- the Arrow file


def schema_of(fields: list[Field]) -> pa.Schema:
    """Return the columns of the Arrow file of a task's rows: the fields, and where each row comes from."""
    text = pa.large_string()  # offsets of 64 bits: a document may be as long as it likes
    words = pa.list_(text)
    kinds = {
        "text": text,
        "label": text,
        "labels": words,
        "number": pa.float64(),
        "words": words,
        "tags": words,
        "slice": text,
    }
    kinds["offsets"] = pa.list_(pa.list_(pa.int64()))
    places = [("_file", pa.int32()), ("_line", pa.int64())]
    if any(field.kind in ("words", "tags") for field in fields):
        places.append(("_lines", pa.list_(pa.int64())))
    return pa.schema([("id", pa.int64()), *((f.name, kinds[f.kind]) for f in fields), *places])


ENDS = (b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0")  # of Arrow's files and streams


def is_whole(path: Path) -> bool:
    """Tell whether a cached Arrow file is there to its end: a machine that went down may have left a part, or zeros."""
    try:
        with path.open("rb") as file:
            return file.seek(-8, os.SEEK_END) > 8 and file.read().endswith(
                ENDS
            )  # not the mark at its beginning
    except OSError:  # not there, or shorter
        return False


def write_rows(path: Path, schema: pa.Schema, rows: Iterable[Row]) -> None:
    """Write rows to an Arrow file that is whole or absent."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            batch: list[Row] = []
            characters = 0
            for row in rows:
                batch.append(row)
                characters += sum(
                    len(value) for value in row.values() if isinstance(value, (str, list))
                )
                if len(batch) == BATCH_ROWS or characters > BATCH_CHARACTERS:
                    writer.write_batch(_batch_of(batch, schema))
                    batch, characters = [], 0
            if batch:
                writer.write_batch(_batch_of(batch, schema))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _batch_of(rows: list[Row], schema: pa.Schema) -> pa.RecordBatch:
    return batch_of({name: [row.get(name) for row in rows] for name in schema.names}, schema)
