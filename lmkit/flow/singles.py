"""The single runs that a recipe with ``seeds: 5`` or ``data.folds: 5`` stands for."""

from __future__ import annotations

import os

from lmkit.errors import RecipeError
from lmkit.recipe import Recipe


def is_repeated(recipe: Recipe) -> bool:
    """Tell if a recipe stands for several runs."""
    return recipe.seeds > 1 or recipe.data.folds is not None


def single_runs(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """Return the runs that a recipe stands for, with the names of their folders; each is an ordinary recipe."""
    data, folds = recipe.data, recipe.data.folds
    changes: dict[str, dict[str, object]] = {}
    if folds is None:
        for seed in range(recipe.seed, recipe.seed + recipe.seeds):
            changes[f"seed-{seed}"] = {"seed": seed}
    else:
        for number in range(1, folds + 1):
            part = data.model_copy(update={"folds": None, "fold": f"{number}/{folds}"})
            changes[f"fold-{number}"] = {"data": part}
    runs = []
    for name, change in changes.items():
        change |= {
            "seeds": 1,
            "name": f"{recipe.name}-{name}",
            "output": f"{recipe.output}/{name}",
        }
        runs.append((name, recipe.model_copy(update=change)))
    return runs


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
    has_validation = data.validation or data.validation_fraction
    if measured_on(recipe) == "validation" and not has_validation:
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
    """Return the split that the runs are evaluated on."""
    data = recipe.data
    has_test = any(part is not None for part in (data.test, data.fold, data.folds))
    return "test" if has_test else "validation"
