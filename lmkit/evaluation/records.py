"""The lines of predictions.jsonl, kept on the disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from lmkit.records import Record


class StoredRecords(Sequence[Record]):
    """Lines of a predictions.jsonl, read on demand: memory holds where they begin, not what they say.

    Iterating reads the file once, from its beginning to its end [transformers#8476].
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as lines:
            ends = np.cumsum(np.fromiter(map(len, lines), np.int64))
        self._starts = np.concatenate([[0], ends])[:-1].astype(np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Record]:
        with self.path.open("rb") as lines:
            for line in lines:
                yield Record.from_json(json.loads(line))

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        with self.path.open("rb") as lines:
            records = []
            for start in np.atleast_1d(self._starts[index]).tolist():
                lines.seek(start)
                records.append(Record.from_json(json.loads(lines.readline())))
        return records if isinstance(index, slice) else records[0]


def store(records: Iterable[Record], path: Path) -> StoredRecords:
    """Write records as they come, a line each."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(
            json.dumps(record.to_json(), ensure_ascii=False) + "\n" for record in records
        )
    return StoredRecords(path)
