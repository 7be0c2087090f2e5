"""``lmkit recipe``: list, show, copy, check and explain recipes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lmkit import console
from lmkit.errors import RecipeError
from lmkit.recipe import load_recipe, shipped_recipes
from lmkit.recipe.load import dump_recipe, find_recipe


def list_recipes() -> list[dict[str, str]]:
    """Name, task and first comment line of every recipe that ships."""
    found = []
    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        found.append(
            {
                "name": name,
                "task": load_recipe(path).task,
                "about": first.lstrip("# ") if first.startswith("#") else "",
            }
        )
    return found


def recipe_table(shipped: list[dict[str, str]]) -> str:
    """Show the recipes for people."""
    rows = [[entry["name"], entry["task"], entry["about"]] for entry in shipped]
    return console.table(["name", "task", "about"], rows)


def show_recipe(name: str, *, complete: bool = False) -> str:
    """The file as it is, or every value that would be used."""
    return (
        dump_recipe(load_recipe(name))
        if complete
        else find_recipe(name).read_text(encoding="utf-8")
    )


def copy_recipe(name: str, target: str | None) -> Path:
    """Copy a shipped recipe to a file of your own.

    Raises:
        RecipeError: the target exists.
    """
    source = find_recipe(name)
    path = Path(target) if target else Path(source.name)
    if path.is_dir():
        path = path / source.name
    if path.exists():
        raise RecipeError(
            "the file exists",
            place=str(path),
            remedy="give another name: lmkit recipe copy NAME FILE",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
    except OSError as error:
        raise RecipeError(
            f"cannot be written: {error.strerror}", place=str(path), remedy="give another place"
        ) from None
    return path


def explain_key(key: str) -> tuple[dict[str, Any], str]:
    """What a key is for: as it is printed with ``--json``, and as a table."""
    from lmkit.recipe.explain import explain

    found = explain(key)
    default = (
        "none" if found["default"] is None else json.dumps(found["default"], ensure_ascii=False)
    )
    rows = [["about", found["about"]], ["default", default]]
    rows += (
        [["expected", found["expected"]]]
        if "expected" in found
        else [["key", name] for name in found["keys"]]
    )
    return found, console.table([key, ""], [row for row in rows if row[1]])


def schema() -> dict[str, Any]:
    """The JSON Schema of recipes."""
    from lmkit.recipe.explain import json_schema

    return json_schema()


def check_recipe(source: str, overrides: list[str]) -> dict[str, Any]:
    """Keys, values, model and data files of a recipe, without torch.

    Returns:
        What was found, for ``--json``.
    """
    from lmkit.models.source import find_model
    from lmkit.preflight import check_choice, check_metrics, check_model_keys
    from lmkit.tasks.registry import names, problem

    recipe = load_recipe(source, overrides)
    if not recipe.task:
        raise RecipeError("no task", place="task", remedy=f"one of: {', '.join(names())}")
    check_metrics(recipe)
    check_model_keys(recipe, find_model(recipe.model.base) if recipe.model.base else None)
    from lmkit.data.splits import (
        load_splits,  # after the recipe is known to be right: mistakes in it answer at once
    )

    splits = load_splits(recipe, problem(recipe.task), wanted=("train", "validation", "test"))
    check_choice(recipe, splits)
    return {
        "recipe": recipe.name,
        "task": recipe.task,
        "rows": {split: len(rows) for split, rows in splits.rows.items()},
        "rejected_rows": len(splits.rejected),
        "labels": splits.facts.get("labels"),
    }
