"""All keys that a recipe may have, and what to answer where one is unknown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, cast

import msgspec

from lmkit.errors import nearest
from lmkit.recipe.foreign import FOREIGN
from lmkit.recipe.schema import Recipe
from lmkit.recipe.section import Section, about, keys_of


@cache
def recipe_type() -> type[Recipe]:
    """Return the recipe with the sections that tasks of other packages bring along."""
    from lmkit.tasks.registry import problems

    sections: list[tuple[str, Any, Any]] = []
    for problem in problems():
        section = problem.section_type
        if problem.section is not None and section is not None:
            annotation = Annotated[section, about(f"{problem.name} only")]  # type: ignore[valid-type]
            sections.append((problem.section, annotation, msgspec.field(default_factory=section)))
    if not sections:
        return Recipe
    whole = msgspec.defstruct("Recipe", sections, bases=(Recipe,), frozen=True, kw_only=True)
    return cast("type[Recipe]", whole)


def known_keys(section: type[Section] | None = None, prefix: str = "") -> list[str]:
    """Return every dotted key that a recipe, or one of its sections, may have."""
    keys = []
    for name, key in keys_of(section or recipe_type()).items():
        keys.append(prefix + name)
        if key.section is not None:
            keys += known_keys(key.section, f"{prefix}{name}.")
    return keys


def explain_unknown(path: Sequence[str]) -> str:
    """Explain an unknown key: by its name here, or by the nearest ones."""
    name = path[-1]
    if name in FOREIGN and ".".join(path) != FOREIGN[name]:
        return f"unknown key; here it is {FOREIGN[name]}"
    everywhere = known_keys()
    same_name = _ending_in(name, everywhere)
    if same_name:
        return _did_you_mean(same_name)
    siblings = keys_of(_innermost_section(path[:-1]))
    close = nearest(name, siblings)
    if close:
        # seed and seeds, fold and folds
        alike = [key for key in siblings if key.rstrip("s") == close.rstrip("s")]
        return _did_you_mean([".".join([*path[:-1], key]) for key in alike])
    close = nearest(name, [key.split(".")[-1] for key in everywhere])
    if close:
        return _did_you_mean(_ending_in(close, everywhere))
    return f"unknown key; known here: {', '.join(siblings)}"


def _ending_in(name: str, keys: Sequence[str]) -> list[str]:
    return [key for key in keys if key.split(".")[-1] == name]


def _did_you_mean(keys: Sequence[str]) -> str:
    return f"unknown key; did you mean {' or '.join(keys)}?"


def _innermost_section(path: Sequence[str]) -> type[Section]:
    """Return the last section of the schema on a path."""
    section: type[Section] = recipe_type()
    for name in path:
        key = keys_of(section).get(name)
        if key is None or key.section is None:
            break
        section = key.section
    return section
