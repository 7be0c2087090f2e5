"""Find the model of an evaluation or a prediction, with its recipe, its labels and its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmkit.errors import ModelError, RecipeError
from lmkit.models.source import ModelSource, find_model
from lmkit.recipe import Recipe, load_recipe
from lmkit.recipe.shipped import SUFFIXES, shipped_recipes
from lmkit.run import Run, is_run
from lmkit.tasks.registry import names, problem, problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lmkit.tasks.base import Facts

DECIDED = ("tokenizer", "lora", "train", "data.labels")  # when a run was trained, whatever its task


@dataclass(frozen=True)
class Subject:
    """A trained model: the options to use it with, its weights, and the run directory that results go to."""

    recipe: Recipe
    source: ModelSource
    run: Run


def find_subject(
    source: str | Path | Mapping[str, object] | Recipe,
    overrides: Sequence[str] = (),
    *,
    output: str | None = None,
) -> Subject:
    """Find the model that a run, a model directory, a hub id or a recipe stands for.

    Raises:
        RecipeError: a key is set that was decided when the run was trained.
        ModelError: nothing is there, or it was trained for another task.
    """
    output = str(Path(output).expanduser()) if output else None
    if isinstance(source, (Mapping, Recipe)) or _is_recipe(str(source)):
        return _of_recipe(load_recipe(source, overrides), output)
    model = find_model(str(source), key="RUN")
    if model.run is not None:
        recipe = load_recipe(Run(model.run).recipe_file, overrides)
        _refuse_decided(overrides, model.run)
        return Subject(_with_task(recipe, model), model, Run(output or model.run))
    name = Path(source).resolve().name if Path(source).is_dir() else str(source).split("/")[-1]
    name = re.sub(r"[^\w.\- ]", "-", name).lstrip("-. ") or "model"
    described = model.description.get("recipe", {})
    recipe = load_recipe(
        {**described, "name": name, "output": output or f"runs/eval-{name}"}, overrides
    )
    return Subject(_with_task(recipe, model), model, Run(recipe.output))


def _of_recipe(recipe: Recipe, output: str | None) -> Subject:
    """Return the recipe's own run where it was trained, else its ``model.base`` as it stands."""
    if recipe.seeds > 1 or recipe.data.folds is not None:
        first = f"seed-{recipe.seed}" if recipe.seeds > 1 else "fold-1"
        raise RecipeError(
            "this recipe stands for several runs, which are evaluated as they are made",
            place="seeds" if recipe.seeds > 1 else "data.folds",
            remedy=f"name one of them: {recipe.output}/{first}",
        )
    trained = output if output and is_run(output) else recipe.output
    if is_run(trained):
        model = find_model(trained, key="output")
        return Subject(_with_task(recipe, model), model, Run(output or trained))
    if recipe.model.base is None:
        raise ModelError(
            "this recipe was not trained yet",
            place=recipe.output,
            remedy="train it first, or name a run, a model directory or a hub id",
        )
    model = find_model(recipe.model.base)
    # not where the recipe's own run will be: training wants that place empty
    return Subject(_with_task(recipe, model), model, Run(output or f"{recipe.output}-base"))


def _is_recipe(name: str) -> bool:
    if Path(name).is_dir():
        return False
    shipped = shipped_recipes()
    return (
        name.endswith(SUFFIXES)
        or name in shipped
        or any(path.endswith("/" + name) for path in shipped)
    )


def _refuse_decided(overrides: Sequence[str], run: Path) -> None:
    """Refuse keys that were decided when the run was trained: they would silently have no effect."""
    decided = {*DECIDED, *(key for solved in problems() for key in solved.decided_keys)}
    for override in overrides:
        key = override.partition("=")[0].strip()
        section = key.split(".")[0]
        is_decided = section in decided or key in decided
        if section == "model" and key not in ("model.trust_remote_code", "model.revision"):
            is_decided = True
        if is_decided:
            raise RecipeError(
                "has no effect on a run that is trained",
                place=key,
                remedy=f"leave it out, or train it anew: {run}",
            )


def _with_task(recipe: Recipe, model: ModelSource) -> Recipe:
    """Return the recipe with the task that the model says it was made for."""
    made_for = model.description.get("task", recipe.task)
    if recipe.task and recipe.task != made_for:
        raise ModelError(
            f"this model was trained for {made_for}, not for {recipe.task}",
            place=model.location,
            remedy=f"fine-tune it first: a recipe with model.base={model.location}",
        )
    if recipe.task:
        return recipe
    if "task" in model.description:
        return recipe.model_copy(update={"task": model.description["task"]})
    raise RecipeError(
        "which task? lmkit did not make this model, so it does not say",
        place="task",
        remedy=f"add task=NAME: {', '.join(names())}",
    )


def tokenizer_of(recipe: Recipe, model: ModelSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer a model was trained with: its own, or ``tokenizer.base`` beside a foreign one."""
    from lmkit.models.tokenizer import for_words, load_tokenizer

    is_own = bool(model.description) or not recipe.tokenizer.base
    place = model.location if is_own else str(recipe.tokenizer.base)
    revision = recipe.model.revision if place == model.location else None  # that of the model alone
    solved, trust = problem(recipe.task), recipe.model.trust_remote_code
    slow = solved.architecture == "encoder-decoder"
    tokenizer = load_tokenizer(place, revision=revision, trust_remote_code=trust, slow=slow)
    if any(field.kind == "words" for field in solved.fields(recipe)):
        return for_words(tokenizer, place, revision=revision, trust_remote_code=trust)
    return tokenizer


def facts_of(model: ModelSource, recipe: Recipe, split: str | None = None) -> Facts:
    """Return what a model knows of its labels; a foreign one has the ``id2label`` of its config.

    Args:
        split: rows of this split show whether texts come in pairs.
    """
    if "facts" in model.description:
        return dict(model.description["facts"])
    solved = problem(recipe.task)
    if not any(field.kind in ("label", "tags") for field in solved.fields(recipe)):
        return {}
    from lmkit.data.splits import peek_split
    from lmkit.models.config import load_config

    first_rows = None if split is None else peek_split(recipe, split)
    return solved.read_config(load_config(model, recipe), recipe, first_rows)
