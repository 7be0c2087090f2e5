"""A value that a row cannot have; whoever knows the row's place makes a DataError of it."""

from __future__ import annotations

from typing import Any

TYPES = {
    type(None): "null",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


class BadValue(Exception):
    """What is wrong with a row."""


def type_name(value: Any) -> str:
    """Name a value's type for messages."""
    return TYPES.get(type(value), f"a {type(value).__name__}")
