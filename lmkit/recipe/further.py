"""Recipes with further sections, which tasks of other packages bring along."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import msgspec
from msgspec import field

from lmkit.recipe.schema import Recipe
from lmkit.recipe.section import Section


def with_sections(sections: Mapping[str, type[Section]]) -> type[Recipe]:
    """Return the type of recipes that have these sections, too."""
    return _with_sections(tuple(sections.items()))


@cache
def _with_sections(sections: tuple[tuple[str, type[Section]], ...]) -> type[Recipe]:
    if not sections:
        return Recipe
    fields = [(name, section, field(default_factory=section)) for name, section in sections]
    extended = msgspec.defstruct(
        "Recipe",
        fields,
        bases=(Recipe,),
        namespace={"__reduce__": _reduce},
        frozen=True,
        kw_only=True,
    )
    return cast(type[Recipe], extended)


def _reduce(recipe: Recipe) -> tuple[Any, ...]:
    # Pickle finds a class by its module and name, and this one is made anew in every process.
    return _restore, (msgspec.structs.asdict(recipe),)


def _restore(values: dict[str, Any]) -> Recipe:
    own = Recipe.__struct_fields__
    sections = {name: type(value) for name, value in values.items() if name not in own}
    return with_sections(sections)(**values)
