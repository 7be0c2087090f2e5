"""Confusion: which label is taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lmkit.records import Record, Stored
from lmkit.tasks.answers import Answer


@dataclass(frozen=True)
class Confusion(Stored):
    """Counts by gold label (rows) and predicted label (columns)."""

    labels: list[str]
    counts: list[list[int]]


def confusion(records: Sequence[Record], answer: Answer, labels: Sequence[str]) -> Confusion | None:
    """Count which label is taken for which; None where labels are not exclusive."""
    if not answer.has_confusion:
        return None
    pairs = Counter(pair for record in records for pair in answer.pairs(record))
    occurring = {label for pair in pairs for label in pair}
    names = answer.table_labels(occurring, labels)
    counts = [[pairs[gold, predicted] for predicted in names] for gold in names]
    return Confusion(names, counts)
