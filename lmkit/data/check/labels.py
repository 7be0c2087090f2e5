"""Check that labels are the same in all splits; rows with others are left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lmkit.data import tags
from lmkit.data.row import OnBadRow, Row
from lmkit.data.rows import Rows
from lmkit.errors import DataError, suggest
from lmkit.tasks.fields import Field

UNKNOWN = "correct it, list it in data.labels, or leave such rows out with data.on_bad_row=skip"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row, and what to do; ``word``: where it is, in a row of words."""

    problem: str
    remedy: str
    word: int | None = None


def labels_of(rows: Rows, field: Field) -> list[str]:
    """Return the distinct labels of a field, in an order that does not depend on the rows'.

    Numbers are ordered by value, names by the alphabet; tags as ``O``, then by type, ``B-`` before ``I-``. A type of
    IOB2 brings both its tags, as a type whose entities all have one word in training may have longer ones elsewhere;
    so do ``B`` and ``I`` without types (see ``tags.are_bare``).
    """
    labels = distinct(rows, field.name)
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    outside = ["O"] if "O" in labels else []
    are_tags = field.kind == "tags"  # the labels of a text may have such names, too
    if are_tags and labels <= set("BIO") and tags.are_bare(labels):
        return [*outside, "B", "I"]
    if are_tags and all(label == "O" or label[:2] in ("B-", "I-") for label in labels):
        types = sorted({label[2:] for label in labels if label != "O"})
        return [*outside, *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
    return sorted(labels, key=lambda label: (label != "O", label))


def distinct(rows: Rows, field: str) -> set[str]:
    """Return the distinct values of a column of texts, or of lists of them."""
    column = rows.column(field)
    values: Any = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    return set(pc.unique(values).to_pylist())


def check_labels(
    rows: Rows, field: Field, labels: Sequence[str], *, split: str, on_bad_row: OnBadRow = "error"
) -> Rows:
    """Return the rows whose labels are among ``labels``; leave the others out, or raise at the first.

    Raises:
        DataError: a label that is not one of ``labels``; or no row is left.
    """
    allowed = set(labels)
    if distinct(rows, field.name) <= allowed:
        return rows
    return _without_unknown(rows, field, allowed, split, on_bad_row)


def _without_unknown(
    rows: Rows, field: Field, allowed: set[str], split: str, on_bad_row: OnBadRow
) -> Rows:
    def unknown(row: Row) -> Fault | None:
        is_sequence = field.kind == "tags"
        name = "tag" if is_sequence else "label"
        value = row[field.name]
        values = value if isinstance(value, list) else [value]
        for i, label in enumerate(values):
            if label not in allowed:
                hint = suggest(label, allowed)
                problem = f"the {name} {label!r} does not occur in training; {hint}"
                return Fault(problem, UNKNOWN, word=i if is_sequence else None)
        return None

    return leave_out(rows, unknown, on_bad_row, split)


def leave_out(
    rows: Rows, find_fault: Callable[[Row], Fault | None], on_bad_row: OnBadRow, split: str
) -> Rows:
    """Return the rows without a fault.

    Raises:
        DataError: at the first fault, unless such rows are skipped; or no row is left.
    """
    bad: list[int] = []
    rejected: list[Row] = []
    for i, row in enumerate(rows):
        fault = find_fault(row)
        if fault is None:
            continue
        place = rows.place(i, word=fault.word)
        if on_bad_row == "error":
            raise DataError(fault.problem, place=place, remedy=fault.remedy)
        content = {name: value for name, value in row.items() if name != "id"}
        bad.append(i)
        rejected.append({"place": place, "problem": fault.problem, "id": row["id"], "row": content})
    if not rejected:
        return rows
    if len(bad) == len(rows):
        raise DataError(
            f"no usable row is left for {split}; the first: {rejected[0]['problem']}",
            place=rejected[0]["place"],
            remedy="correct the data",
        )
    return rows.without(bad, rejected=rows.rejected + rejected)
