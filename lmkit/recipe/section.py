"""Frozen sections of typed keys, and how plain values are checked against them.

In form a small part of pydantic. Importing that, and building its validators, takes longer than all else up to the message
about a mistake in a recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from re import fullmatch
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
TRUTH = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


@dataclass(eq=False)
class Key:
    """What is known of a key beside its type; in ``Annotated``, what else must hold of a value."""

    default: Any
    default_factory: Callable[[], Any] | None
    description: str
    limits: dict[str, Any]
    annotation: Any = None

    @property
    def section(self) -> type[Section] | None:
        """The section that the key opens, through ``X | None``."""
        kinds = [self.annotation, *get_args(self.annotation)]
        return next(
            (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None
        )

    def value(self) -> Any:
        """What holds where the key is not given."""
        return self.default if self.default_factory is None else self.default_factory()


def Field(
    default: Any = None,
    *,
    default_factory: Callable[[], Any] | None = None,
    description: str = "",
    **limits: Any,
) -> Any:
    """A key's default, description and limits: ge, gt, le, lt; min_length; pattern, of the whole text."""
    assert limits.keys() <= LIMITS.keys()
    return Key(default, default_factory, description, limits)


@dataclass(eq=False)
class Before:
    """In ``Annotated``: what is done to a value before it is checked; its ValueError says what was expected."""

    change: Callable[[Any], Any]


class Section:
    """A frozen mapping of keys. Made in code, its values are taken as they are; ``checked`` makes one of a user's."""

    model_fields: ClassVar[dict[str, Key]] = {}

    def __init_subclass__(cls) -> None:
        cls.model_fields = {}
        for name, annotation in cls.__annotations__.items():
            key = cls.__dict__[name]
            key.annotation = Annotated[annotation, key] if key.limits else annotation
            cls.model_fields[name] = key
            delattr(cls, name)

    def __init__(self, **values: Any) -> None:
        assert values.keys() <= self.model_fields.keys(), values.keys() - self.model_fields.keys()
        for name, key in self.model_fields.items():
            self.__dict__[name] = values[name] if name in values else key.value()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: a recipe is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name}: a recipe is frozen")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """The same with some keys replaced."""
        return type(self)(**{**self.__dict__, **update})

    def model_dump(
        self, *, include: Collection[str] | None = None, exclude: Collection[str] = ()
    ) -> dict[str, Any]:
        """Plain values, the inner sections' too; ``include`` and ``exclude`` name keys of this one."""
        chosen = [
            name
            for name in self.__dict__
            if (include is None or name in include) and name not in exclude
        ]
        return {name: _plain(self.__dict__[name]) for name in chosen}


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.model_dump()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------------------- checking

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Mistake:
    """A key that is not known (``expected`` is None), or whose value is not what was expected."""

    path: tuple[str, ...]
    expected: str | None
    found: Any


def checked(
    kind: type[S], values: Any, mistakes: list[Mistake], path: tuple[str, ...] = ()
) -> S | None:
    """A section of plain values, or None and what is wrong with them added to ``mistakes``.

    A section given as null (``tokenizer:`` with nothing, or only comments, below it) stands for its default.
    """
    if isinstance(values, Section):
        values = values.model_dump()
    if not isinstance(values, dict):
        mistakes.append(Mistake(path, "a mapping of keys to values", values))
        return None
    found, before = {}, len(mistakes)
    for name, value in values.items():
        here, key = (*path, str(name)), kind.model_fields.get(name)
        if key is None:
            mistakes.append(Mistake(here, None, value))
        elif value is None and (key.default_factory is not None or key.section is not None):
            found[name] = key.value()
        elif key.section is not None:
            found[name] = checked(key.section, value, mistakes, here)
        else:
            try:
                found[name] = _as(key.annotation, value)
            except _Unfit as error:
                inside, expected, value = error.entry or ((), key.annotation, value)
                mistakes.append(Mistake((*here, *inside), described(expected), value))
            except ValueError as error:
                mistakes.append(Mistake(here, str(error), value))
    return kind(**found) if len(mistakes) == before else None


class _Unfit(Exception):
    """A value is not of a type; ``entry``: of a list or mapping its path, the type that was expected there, and what it is."""

    entry: tuple[tuple[str, ...], Any, Any] | None = None


def _entry(kind: Any, value: Any, name: Any, *, exact: bool) -> Any:
    try:
        return _as(kind, value, exact=exact)
    except _Unfit as error:
        inside, expected, found = error.entry or ((), kind, value)
        error.entry = ((str(name), *inside), expected, found)
        raise


def _as(kind: Any, value: Any, *, exact: bool = False) -> Any:
    """The value as one of a type; unless ``exact``, a number may be given as text, or a whole one with decimals.

    Raises:
        _Unfit: it is none. ValueError: a ``Before`` says so.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        for each in inner[1:]:
            value = each.change(value) if isinstance(each, Before) else value
        value = _as(inner[0], value, exact=exact)
        if all(_keeps(value, each.limits) for each in inner[1:] if isinstance(each, Key)):
            return value
    elif origin in (Union, UnionType):
        entry = None
        for how in (
            True,
            exact,
        ):  # a type that the value has comes before one that it can be made to have
            for branch in inner:
                try:
                    return _as(branch, value, exact=how)
                except _Unfit as error:
                    entry = error.entry or entry
        unfit = _Unfit()
        unfit.entry = entry
        raise unfit
    elif origin is Literal:
        if any(type(value) is type(known) and value == known for known in inner):
            return value
    elif origin is list:
        if isinstance(value, (list, tuple)):
            return [
                _entry(inner[0], entry, number, exact=exact) for number, entry in enumerate(value)
            ]
    elif origin is dict:
        if isinstance(value, dict):
            return {
                _entry(inner[0], key, key, exact=exact): _entry(inner[1], entry, key, exact=exact)
                for key, entry in value.items()
            }
    elif kind is Any or (type(value) is kind and _is_finite(value)):
        return value
    elif not exact:
        return _made(kind, value)
    raise _Unfit


def _made(kind: type, value: Any) -> Any:
    """A number or a truth value of what stands for one."""
    if kind is bool and isinstance(value, (str, int)) and str(value).lower() in TRUTH:
        return TRUTH[str(value).lower()]
    if (
        kind in (int, float)
        and isinstance(value, (str, int, float))
        and not isinstance(value, bool)
    ):
        with suppress(ValueError, OverflowError):
            number = kind(value)
            if _is_finite(number) and (isinstance(value, str) or number == value):
                return number
    raise _Unfit


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


# limit -> what it is called, and whether a value keeps it
LIMITS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "gt": ("greater than {}", lambda value, limit: value > limit),
    "ge": ("greater than or equal to {}", lambda value, limit: value >= limit),
    "lt": ("less than {}", lambda value, limit: value < limit),
    "le": ("less than or equal to {}", lambda value, limit: value <= limit),
    "min_length": ("not empty", lambda value, limit: len(value) >= limit),
    "pattern": ("matching {}", lambda value, limit: fullmatch(limit, value) is not None),
}


def _keeps(value: Any, limits: Mapping[str, Any]) -> bool:
    return all(LIMITS[name][1](value, limit) for name, limit in limits.items())


def described(kind: Any) -> str:
    """What a type's values are, in words.

    >>> described(Annotated[int, Field(ge=1)] | Literal["auto"] | None)
    "a whole number greater than or equal to 1 or 'auto'"
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        limits = [
            (name, limit)
            for each in inner[1:]
            if isinstance(each, Key)
            for name, limit in each.limits.items()
        ]
        return " ".join(
            [
                described(inner[0]),
                " and ".join(LIMITS[name][0].format(limit) for name, limit in limits),
            ]
        ).rstrip()
    if origin in (Union, UnionType, Literal):
        choices = [repr(each) if origin is Literal else described(each) for each in _flat(inner)]
        return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
    if origin is list:
        return f"a list of {described(inner[0]).removeprefix('a ')}"
    return "a mapping" if origin is dict else NAMES[kind]


def _flat(kinds: Iterable[Any]) -> list[Any]:
    """The types of a union but null, those of unions within it too."""
    found = []
    for kind in kinds:
        plain = kind.__origin__ if get_origin(kind) is Annotated else kind
        found += (
            _flat(get_args(plain))
            if get_origin(plain) in (Union, UnionType)
            else [kind]
            if kind is not NoneType
            else []
        )
    return found
