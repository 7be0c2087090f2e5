"""The lines of predictions.jsonl: kept on the disk, and what kind they are told from themselves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from lmkit.metrics.tagging import is_iob2

Record = Mapping[str, Any]
Kind = Literal["label", "labels", "number", "entities", "tags", "translation", "language"]
LETTERS = 1000  # of a text that are shown or stored as an excerpt


def kind_of(records: Sequence[Record]) -> Kind:
    """What is predicted: one label, a set of labels, a number, entities, other tags, a text, or the text's own tokens."""
    first = next(iter(records), {})
    if "tokens" in first:
        tags = {tag for record in records for tag in (*record["gold"], *record["prediction"])}
        return "entities" if is_iob2(sorted(tags)) and any(tag != "O" for tag in tags) else "tags"
    if "source" in first:
        return "translation"
    gold = first.get("gold")
    if isinstance(gold, str):
        return "label"
    if isinstance(gold, (list, tuple)):
        return "labels"
    return "number" if isinstance(gold, (int, float)) else "language"


class StoredRecords(Sequence[Record]):
    """Lines of a predictions.jsonl, read when they are asked for: memory holds where they begin, not what they say.

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
                yield json.loads(line)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        with self.path.open("rb") as lines:
            found = []
            for start in np.atleast_1d(self._starts[index]).tolist():
                lines.seek(start)
                found.append(json.loads(lines.readline()))
        return found if isinstance(index, slice) else found[0]


def store(records: Iterable[Record], path: Path) -> StoredRecords:
    """Write records as they come, a line each."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return StoredRecords(path)


def text_of(record: Record) -> str:
    """What the model read, as one text; the second of a pair after a line break.

    >>> text_of({"tokens": ["New", "York"]}), text_of({"text": "a", "text_pair": "b"})
    ('New York', 'a\\nb')
    """
    if "tokens" in record:
        return " ".join(record["tokens"])
    return "\n".join(
        str(record[name])
        for name in ("source", "text", "text_pair")
        if record.get(name) is not None
    )


def loss_of(record: Record) -> float:
    """Nats per label that counts; nan without any."""
    return record["nll"] / record["items"] if record.get("items") else math.nan


def is_wrong(record: Record, kind: Kind) -> bool:
    """Whether the prediction differs from the gold; of language models and numbers that cannot be said."""
    if kind in ("language", "number"):
        return False
    if kind == "labels":
        return set(record["gold"]) != set(record["prediction"])
    found: bool = record["gold"] != record["prediction"]
    return found


def excerpt(text: str, letters: int = LETTERS) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def headline(names: Sequence[str], found: Mapping[str, Any]) -> str:
    """The metric that stands for all: the first of a task's ``names`` that metrics.json has."""
    return next((name for name in names if name in found["metrics"]), next(iter(found["metrics"])))
