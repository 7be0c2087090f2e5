"""Sections of a recipe: frozen structs of typed keys, each with its limits and a description.

Sections made in code take their values as they are; ``convert.py`` checks those of a user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

import msgspec
from msgspec import Meta


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A frozen mapping of keys to values."""

    def model_copy(self, *, update: dict[str, Any]) -> Self:
        """Replace some keys."""
        return msgspec.structs.replace(self, **update)

    def model_dump(
        self, *, include: Collection[str] | None = None, exclude: Collection[str] = ()
    ) -> dict[str, Any]:
        """Return plain values, also of inner sections; ``include`` and ``exclude`` name keys of this one."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        chosen = values.keys() if include is None else set(include)
        return {name: values[name] for name in values if name in chosen and name not in exclude}


@dataclass(frozen=True)
class Key:
    """One key of a section.

    Args:
        section: the section that the key opens, also through ``X | None``.
        null_is_default: null stands for the default, as where a section has nothing but comments below it.
    """

    annotation: Any
    description: str
    default: Any
    section: type[Section] | None
    null_is_default: bool


@cache
def keys_of(section: type[Section]) -> dict[str, Key]:
    """Return the keys of a section by name."""
    keys = {}
    for field in msgspec.structs.fields(section):
        descriptions = [meta.description for meta in metas_of(field.type) if meta.description]
        inner = _section_in(field.type)
        is_made = field.default_factory is not msgspec.NODEFAULT
        keys[field.name] = Key(
            annotation=field.type,
            description=descriptions[-1] if descriptions else "",
            default=field.default_factory() if is_made else field.default,
            section=inner,
            null_is_default=is_made or inner is not None,
        )
    return keys


def _section_in(annotation: Any) -> type[Section] | None:
    for member in members_of(annotation):
        kind = bare(member)
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def metas_of(annotation: Any) -> list[Meta]:
    """Return the limits and descriptions of an annotation."""
    return list(getattr(annotation, "__metadata__", ()))


def members_of(annotation: Any) -> list[Any]:
    """Return the types of a union, also of unions within it; of anything else the type itself."""
    plain = bare(annotation)
    if get_origin(plain) not in (Union, UnionType):
        return [annotation]
    members = []
    for member in get_args(plain):
        members += members_of(member)
    return members


def bare(annotation: Any) -> Any:
    """Return an annotation without limits and descriptions."""
    return annotation.__origin__ if get_origin(annotation) is Annotated else annotation


# ---------------------------------------------------------------------------------- kinds of keys


def about(description: str) -> Meta:
    """Describe a key: for ``lmkit recipe explain``, editors and docs/recipes.md."""
    return Meta(description=description)


def prepared(prepare: Callable[[Any], Any], *, json_schema: Mapping[str, Any]) -> Meta:
    """Change a value before it is checked; a ValueError of ``prepare`` says what was expected.

    Args:
        json_schema: what the JSON Schema says of values before the change, where it differs.
    """
    return Meta(extra={"prepare": prepare, "json_schema": json_schema})


def as_text(value: Any) -> Any:
    """Write a number or a bool as text: ``columns: {text: 0}``, ``labels: [1, 2]``."""
    if isinstance(value, bool):
        return str(value).lower()  # as the rows' labels are written
    return str(value) if isinstance(value, int) else value


def as_interval(value: Any) -> Any:
    """Refuse what is neither null, nor a number of steps, nor minutes."""
    if isinstance(value, str) and re.fullmatch(r"(\d+|\d*\.\d+)\s*min", value):
        return value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None or (is_number and value >= 1 and value % 1 == 0):
        return value
    raise ValueError('a number of steps, or minutes as "10min"')


Positive = Annotated[int, Meta(ge=1)]
AboveZero = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Name = Annotated[str, prepared(as_text, json_schema={"type": ["string", "integer", "boolean"]})]
Interval = Annotated[str | Positive | None, prepared(as_interval, json_schema={})]
Source = str | list[str]  # path, list, glob, directory or hub id
Parallel = dict[str, str | list[str]]  # role -> text files, of which line i of each makes row i
