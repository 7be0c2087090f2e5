"""The single runs that a recipe with ``seeds: 5`` or ``data.folds: 5`` stands for."""

from __future__ import annotations

import os
from typing import Any

from lmkit.errors import RecipeError
from lmkit.recipe import Recipe


def is_repeated(recipe: Recipe) -> bool:
    """Whether a recipe stands for several runs."""
    return recipe.seeds > 1 or recipe.data.folds is not None


def single_runs(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """The runs that a recipe stands for, by the name of their folders; each is an ordinary recipe."""
    folds = recipe.data.folds
    changes: dict[str, dict[str, Any]]
    if folds is None:
        changes = {
            f"seed-{seed}": {"seed": seed}
            for seed in range(recipe.seed, recipe.seed + recipe.seeds)
        }
    else:
        numbers = range(1, folds + 1)
        changes = {
            f"fold-{n}": {
                "data": recipe.data.model_copy(update={"folds": None, "fold": f"{n}/{folds}"})
            }
            for n in numbers
        }
    return [
        (
            name,
            recipe.model_copy(
                update={
                    "seeds": 1,
                    "name": f"{recipe.name}-{name}",
                    "output": f"{recipe.output}/{name}",
                    **change,
                }
            ),
        )
        for name, change in changes.items()
    ]


def check_repeat(recipe: Recipe) -> None:
    """Refuse what several runs cannot be made of, or measured on."""
    data = recipe.data
    if recipe.seeds > 1 and data.folds is not None:
        raise RecipeError("given beside data.folds", place="seeds", remedy="keep one of the two")
    if data.folds is not None and data.fold is not None:
        raise RecipeError(
            "given beside data.folds", place="data.fold", remedy="keep one of the two"
        )
    if data.folds is not None and data.test is not None:
        raise RecipeError(
            "given beside data.folds, which tests on data.train",
            place="data.test",
            remedy="keep one of the two",
        )
    if (
        data.folds is None
        and measured_on(recipe) == "validation"
        and not (data.validation or data.validation_fraction)
    ):
        raise RecipeError(
            "no data to measure the runs on",
            place="seeds",
            remedy="give data.test or data.validation",
        )
    if "RANK" in os.environ:
        key = "seeds" if data.folds is None else "data.folds"
        raise RecipeError(
            "not under a launcher",
            place=key,
            remedy="start lmkit itself, with hardware.processes=N",
        )


def measured_on(recipe: Recipe) -> str:
    """The split that the runs are evaluated on."""
    return (
        "validation"
        if (recipe.data.test, recipe.data.fold, recipe.data.folds) == (None, None, None)
        else "test"
    )
