"""Confusion: which label is taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lmkit.records import Record
from lmkit.tasks.answers import Answer


def confusion(
    records: Sequence[Record], answer: Answer, labels: Sequence[str]
) -> dict[str, Any] | None:
    """Count by gold label (rows) and predicted label (columns); None where labels are not exclusive."""
    if not answer.has_confusion:
        return None
    counts = Counter(pair for record in records for pair in answer.pairs(record))
    occurring = {label for pair in counts for label in pair}
    names = answer.table_labels(occurring, labels)
    return {
        "labels": names,
        "counts": [[counts[gold, predicted] for predicted in names] for gold in names],
    }
