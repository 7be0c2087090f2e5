"""Recipes with further sections, which tasks of other packages bring along."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, cast

import msgspec

from lmkit.errors import RecipeError
from lmkit.recipe.schema import Recipe
from lmkit.recipe.section import about


@cache
def recipe_type() -> type[Recipe]:
    """Return ``Recipe``, with the sections that tasks of other packages bring along.

    Raises:
        RecipeError: a recipe has such a section already.
    """
    from lmkit.tasks.registry import problems

    sections: dict[str, tuple[str, Any, Any]] = {}
    for problem in problems():
        name, section = problem.section, problem.section_type
        if name is None or section is None:
            continue
        if name in sections or name in Recipe.__struct_fields__:
            raise _section_twice(problem.name, name)
        annotation = Annotated[section, about(f"{problem.name} only")]  # type: ignore[valid-type]
        sections[name] = (name, annotation, msgspec.field(default_factory=section))
    return _extended(sections) if sections else Recipe


def _section_twice(task: str, name: str) -> RecipeError:
    return RecipeError(
        f"the task {task!r} brings a section {name!r}, which recipes have already",
        place="task",
        remedy="its package has to give the section another name",
    )


def _extended(sections: dict[str, tuple[str, Any, Any]]) -> type[Recipe]:
    extended = msgspec.defstruct(
        "Recipe",
        list(sections.values()),
        bases=(Recipe,),
        namespace={"__reduce__": _reduce},
        frozen=True,
        kw_only=True,
    )
    return cast("type[Recipe]", extended)


def _reduce(recipe: Recipe) -> tuple[Any, ...]:
    # Pickle finds a class by its module and name, and this one is made anew in every process.
    return _restore, (msgspec.structs.asdict(recipe),)


def _restore(values: dict[str, Any]) -> Recipe:
    return recipe_type()(**values)
