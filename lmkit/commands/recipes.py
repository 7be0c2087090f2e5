"""``lmkit recipe``: list, show, copy, check and explain recipes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmkit import console
from lmkit.errors import RecipeError
from lmkit.recipe import load_recipe, shipped_recipes
from lmkit.recipe.load import dump_recipe
from lmkit.recipe.shipped import find_recipe


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that ships: its name, its task and its first comment line."""

    name: str
    task: str
    about: str


@dataclass(frozen=True)
class RecipeList:
    """The recipes that ship."""

    recipes: tuple[ShippedRecipe, ...]

    def to_json(self) -> dict[str, Any]:
        return {"recipes": [asdict(recipe) for recipe in self.recipes]}

    def to_text(self) -> str:
        rows = [[recipe.name, recipe.task, recipe.about] for recipe in self.recipes]
        return console.table(["name", "task", "about"], rows)


@dataclass(frozen=True)
class CheckedRecipe:
    """A recipe in which nothing is wrong.

    Args:
        rows: how many each split has.
        labels: None where the task has none.
    """

    recipe: str
    task: str
    rows: Mapping[str, int]
    rejected_rows: int
    labels: Sequence[str] | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        rows = ", ".join(f"{split} {count} rows" for split, count in self.rows.items())
        return f"{self.recipe}: {self.task}; {rows}; nothing wrong"


@dataclass(frozen=True)
class KeyExplanation:
    """A key of a recipe: what it is for, its default, and what it expects, or the keys of a section."""

    key: str
    about: str
    default: Any
    expected: str | None
    keys: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        values = {"key": self.key, "about": self.about, "default": self.default}
        if self.expected is not None:
            return values | {"expected": self.expected}
        return values | {"keys": list(self.keys)}

    def to_text(self) -> str:
        default = json.dumps(self.default, ensure_ascii=False)
        rows = [["about", self.about], ["default", "none" if self.default is None else default]]
        if self.expected is not None:
            rows.append(["expected", self.expected])
        rows += [["key", name] for name in self.keys]
        return console.table([self.key, ""], [row for row in rows if row[1]])


@dataclass(frozen=True)
class RecipeSchema:
    """The JSON Schema of recipes."""

    schema: Mapping[str, object]

    def to_json(self) -> dict[str, Any]:
        return dict(self.schema)


def list_recipes() -> RecipeList:
    """Return every recipe that ships."""
    shipped = []
    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        about = first.lstrip("# ") if first.startswith("#") else ""
        shipped.append(ShippedRecipe(name, load_recipe(path).task, about))
    return RecipeList(tuple(shipped))


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


def explain_key(key: str) -> KeyExplanation:
    """Explain a key, or a section of keys."""
    from lmkit.recipe.explain import explain

    values = explain(key)
    expected, keys = values.get("expected"), tuple(values.get("keys", ()))
    return KeyExplanation(values["key"], values["about"], values["default"], expected, keys)


def schema() -> RecipeSchema:
    """Return the JSON Schema of recipes."""
    from lmkit.recipe.explain import json_schema

    return RecipeSchema(json_schema())


def check_recipe(source: str, overrides: Sequence[str] = ()) -> CheckedRecipe:
    """Check keys, values, model and data files of a recipe, without torch."""
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
    rows = {split: len(rows) for split, rows in splits.rows.items()}
    labels = splits.facts.get("labels")
    return CheckedRecipe(recipe.name, recipe.task, rows, len(splits.rejected), labels)
