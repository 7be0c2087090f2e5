"""Check the values of a row: a text is there, a label is a name, a number is finite."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmkit.data.check.columns import Keys, value_at
from lmkit.data.check.errors import BadValue, type_name
from lmkit.data.row import Row
from lmkit.tasks.fields import Field

HALF_PAIR = re.compile("[\ud800-\udfff]")


def check_row(raw: Row, fields: Sequence[Field], columns: Mapping[str, Keys]) -> Row:
    """Take the fields of a task out of one raw row.

    Args:
        columns: role -> where its value is.

    Raises:
        BadValue: says what is wrong with the row.
    """
    row: Row = {}
    words: list[str] | None = None
    for field in fields:
        keys = columns[field.name]
        if field.kind == "slice":
            row[field.name] = _slice_value(raw, keys)
            continue
        value = CHECKS[field.kind](value_at(raw, keys), ".".join(keys), field)
        row[field.name] = value
        if field.kind == "words":
            words = value
        elif field.kind == "tags" and words is not None and len(words) != len(value):
            raise BadValue(f"{len(words)} words but {len(value)} tags")
    return row


def _slice_value(raw: Row, keys: Keys) -> str | None:
    """Return a value to slice by, as text: none makes a row bad."""
    try:
        value = value_at(raw, keys)
    except BadValue:
        return None
    if value is None:
        return None
    if isinstance(value, (bool, float)):
        value = str(value).lower().removesuffix(".0")
    return str(value).encode("utf-8", "replace").decode()


def _text(value: Any, column: str, field: Field | None = None) -> str:
    if not isinstance(value, str):
        raise BadValue(f"{column!r} is {type_name(value)}; text is expected")
    if not value.strip():
        raise BadValue(f"{column!r} is blank" if value else f"{column!r} is empty")
    if not value.isascii() and HALF_PAIR.search(value):
        raise BadValue(f"{column!r} contains half a surrogate pair, which is not a character")
    return value


def _label(value: Any, column: str, field: Field | None = None) -> str:
    if isinstance(value, str):
        return _text(value, column).strip()
    return _label_of_number(value, column)


def _label_of_number(value: Any, column: str) -> str:
    """Write a bool or a whole number as a label."""
    if isinstance(value, bool):
        return str(value).lower()  # as JSON spells it
    if isinstance(value, int):
        return str(value)
    number = ""
    if isinstance(value, float):
        if value.is_integer():
            return str(int(value))
        number = f" {value}"
    expected = "a label is a string or a whole number"
    raise BadValue(f"{column!r} is {type_name(value)}{number}; {expected}")


def _labels(value: Any, column: str, field: Field) -> list[str]:
    if isinstance(value, str):
        value = [part for part in value.split(field.separator) if part.strip()]
    if not isinstance(value, list):
        raise BadValue(f"{column!r} is {type_name(value)}; a list of labels is expected")
    labels = [_label(label, f"{column}[{i}]") for i, label in enumerate(value)]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        expected = "the labels that apply are expected, not a vector of zeros and ones"
        raise BadValue(f"{column!r} holds {twice!r} twice; {expected}")
    return labels


def _number(value: Any, column: str, field: Field) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        shown = repr(value) if isinstance(value, (str, float)) else type_name(value)
        raise BadValue(f"{column!r} is {shown}; a number is expected")
    return number


def _words(value: Any, column: str, field: Field) -> list[str]:
    words = [_text(word, f"{column}[{i}]") for i, word in enumerate(_list(value, column, field))]
    if not words:
        raise BadValue(f"{column!r} is an empty list")
    return words


def _tags(value: Any, column: str, field: Field) -> list[str]:
    return [_label(tag, f"{column}[{i}]") for i, tag in enumerate(_list(value, column, field))]


def _list(value: Any, column: str, field: Field) -> list[Any]:
    if isinstance(value, list):
        return value
    hint = ""
    if field.kind == "spans" and value is not None:
        hint = "; one label for a whole text is task: classification"
    raise BadValue(f"{column!r} is {type_name(value)}; a list of {field.kind} is expected{hint}")


CHECKS: dict[str, Callable[[Any, str, Field], Any]] = {
    "text": _text,
    "label": _label,
    "labels": _labels,
    "number": _number,
    "words": _words,
    "tags": _tags,
    "spans": _list,
}
