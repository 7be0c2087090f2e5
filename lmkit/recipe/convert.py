"""Plain values as sections: all mistakes at once, each with its key, what was expected, and what is there.

msgspec stops at the first mistake, so it is asked value by value.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from lmkit.recipe.section import Section, bare, keys_of, members_of, metas_of

S = TypeVar("S", bound=Section)
Path = tuple[str, ...]

BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
LIMITS = {
    "gt": "greater than {}",
    "ge": "greater than or equal to {}",
    "lt": "less than {}",
    "le": "less than or equal to {}",
    "min_length": "not empty",
    "pattern": "matching {}",
}


@dataclass(frozen=True)
class Mistake:
    """An unknown key (``expected`` is None), or a value that is not what was expected."""

    path: Path
    expected: str | None
    value: Any


class Unfit(Exception):
    """A value that is not of its key's type."""

    def __init__(self, mistake: Mistake):
        super().__init__(mistake)
        self.mistake = mistake


def convert_section(
    section: type[S], values: Any, mistakes: list[Mistake], path: Path = ()
) -> S | None:
    """Make a section of plain values.

    Args:
        mistakes: what is wrong with the values is added here.

    Returns:
        The section, or None where something is wrong.
    """
    if isinstance(values, Section):
        values = values.model_dump()
    if not isinstance(values, dict):
        mistakes.append(Mistake(path, "a mapping of keys to values", values))
        return None
    converted: dict[str, Any] = {}
    mistakes_before = len(mistakes)
    for name, value in values.items():
        key_path = (*path, str(name))
        key = keys_of(section).get(name)
        if key is None:
            mistakes.append(Mistake(key_path, None, value))
        elif value is None and key.null_is_default:
            continue
        elif key.section is not None:
            converted[name] = convert_section(key.section, value, mistakes, key_path)
        else:
            try:
                converted[name] = convert_value(key.annotation, value, key_path)
            except Unfit as error:
                mistakes.append(error.mistake)
    return section(**converted) if len(mistakes) == mistakes_before else None


def convert_value(annotation: Any, value: Any, path: Path) -> Any:
    """Make a value of an annotated type, entry by entry where it is a list or a mapping.

    Raises:
        Unfit: names the entry that is not of its type.
    """
    try:
        value = _prepare(annotation, value)
    except ValueError as error:
        raise Unfit(Mistake(path, str(error), value)) from None
    for member in members_of(annotation):
        plain = bare(member)
        if get_origin(plain) is list and isinstance(value, (list, tuple)):
            value = _convert_entries(plain, value, path)
        elif get_origin(plain) is dict and isinstance(value, dict):
            value = _convert_items(plain, value, path)
    try:
        converted = _coerce(annotation, value)
    except msgspec.ValidationError:
        raise Unfit(Mistake(path, describe(annotation), value)) from None
    if isinstance(converted, float) and not math.isfinite(converted) and annotation is not Any:
        raise Unfit(Mistake(path, describe(annotation), value))
    return converted


def _prepare(annotation: Any, value: Any) -> Any:
    for meta in metas_of(annotation):
        if meta.extra:
            value = meta.extra["prepare"](value)
    return value


def _convert_entries(kind: Any, values: list[Any] | tuple[Any, ...], path: Path) -> list[Any]:
    (inner,) = get_args(kind)
    return [convert_value(inner, entry, (*path, str(i))) for i, entry in enumerate(values)]


def _convert_items(kind: Any, values: dict[Any, Any], path: Path) -> dict[Any, Any]:
    key_kind, value_kind = get_args(kind)
    converted = {}
    for key, value in values.items():
        entry_path = (*path, str(key))
        key = convert_value(key_kind, key, entry_path)
        converted[key] = convert_value(value_kind, value, entry_path)
    return converted


def _coerce(annotation: Any, value: Any) -> Any:
    """Convert a value as it is, or else what it stands for: "1e-4" is a number, "yes" and 1 are true."""
    try:
        return msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        meant = read_text(value) if isinstance(value, str) else value
        if isinstance(meant, str):
            raise
        return msgspec.convert(meant, annotation, strict=False)


def read_text(text: str) -> int | float | bool | str:
    """Read a number or a bool from text; anything else stays text.

    >>> read_text("1e-4"), read_text("yes"), read_text("adam")
    (0.0001, True, 'adam')
    """
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return BOOLS.get(text.lower(), text)


# ---------------------------------------------------------------------------------- describing


def describe(annotation: Any) -> str:
    """Say in words which values an annotation allows.

    >>> from lmkit.recipe.section import Positive
    >>> describe(Positive | Literal["auto"] | None)
    "a whole number greater than or equal to 1 or 'auto'"
    """
    choices: list[str] = []
    for member in members_of(annotation):
        choices += _describe_member(member)
    first = ", ".join(choices[:-1])
    return f"{first} or {choices[-1]}" if first else choices[-1]


def _describe_member(member: Any) -> list[str]:
    plain = bare(member)
    origin, inner = get_origin(plain), get_args(plain)
    if plain is NoneType:
        return []
    if origin is Literal:
        return [repr(value) for value in inner]
    if origin is list:
        name = f"a list of {describe(inner[0]).removeprefix('a ')}"
    else:
        name = "a mapping" if origin is dict else NAMES[plain]
    limits = " and ".join(_limits(member))
    return [f"{name} {limits}" if limits else name]


def _limits(annotation: Any) -> list[str]:
    limits = []
    for meta in metas_of(annotation):
        for name, words in LIMITS.items():
            limit = getattr(meta, name)
            if limit is not None:
                limits.append(words.format(limit))
    return limits
