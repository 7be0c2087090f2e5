"""``lmkit pretrain`` and ``lmkit finetune``: check everything that needs no torch, then train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmkit import console
from lmkit.models.source import find_model
from lmkit.preflight import check_choice, check_model_keys, check_recipe
from lmkit.recipe import Recipe, load_recipe
from lmkit.tasks.registry import problem

if TYPE_CHECKING:
    from lmkit.flow.dry_run import DryRunPlan
    from lmkit.flow.repeat import RepeatSummary
    from lmkit.flow.smoke import SmokeSummary
    from lmkit.train.summary import TrainingSummary


def train(
    stage: str,
    source: str | Path | Mapping[str, object] | Recipe,
    overrides: Sequence[str] = (),
    *,
    output: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingSummary | RepeatSummary:
    """Train a recipe, or every run of one that stands for several.

    Args:
        stage: ``pretrain`` or ``finetune``; the recipe's task must belong to it.
    """
    recipe = _checked_recipe(stage, source, overrides, output)
    from lmkit.flow.repeat import repeat
    from lmkit.flow.singles import is_repeated
    from lmkit.flow.training import train_one

    if is_repeated(recipe):
        return repeat(stage, recipe, resume=resume, overwrite=overwrite)
    return train_one(stage, recipe, resume=resume, overwrite=overwrite)


def smoke(
    stage: str, source: str | Path | Mapping[str, object] | Recipe, overrides: Sequence[str] = ()
) -> SmokeSummary:
    """Run the recipe end to end in seconds, on a tiny model of the same architecture."""
    recipe = _first_run(_checked_recipe(stage, source, overrides, None))
    from lmkit.flow.smoke import smoke_run

    return smoke_run(recipe)


def dry_run(
    stage: str,
    source: str | Path | Mapping[str, object] | Recipe,
    overrides: Sequence[str] = (),
    *,
    output: str | None = None,
) -> DryRunPlan:
    """Check everything and return the plan; train nothing."""
    recipe = _first_run(_checked_recipe(stage, source, overrides, output))
    model = find_model(recipe.model.base) if recipe.model.base else None
    check_model_keys(recipe, model)
    # after the recipe is known to be right: mistakes in it answer at once
    from lmkit.data.splits import load_splits
    from lmkit.flow.dry_run import dry_run_plan

    splits = load_splits(recipe, problem(recipe.task), wanted=("train", "validation"))
    check_choice(recipe, splits)
    return dry_run_plan(recipe, splits, model)


def _checked_recipe(
    stage: str,
    source: str | Path | Mapping[str, object] | Recipe,
    overrides: Sequence[str],
    output: str | None,
) -> Recipe:
    """Load a recipe and refuse what is wrong in it whatever the model and the data are."""
    recipe = load_recipe(source, overrides)
    from lmkit.flow.singles import check_repeat, is_repeated

    if output is not None:
        recipe = recipe.model_copy(update={"output": str(Path(output).expanduser())})
    check_recipe(recipe, stage)
    if is_repeated(recipe):
        check_repeat(recipe)
    return recipe


def _first_run(recipe: Recipe) -> Recipe:
    """Return the first run of a recipe that stands for several, and say so."""
    from lmkit.flow.singles import is_repeated, single_runs

    if not is_repeated(recipe):
        return recipe
    runs = single_runs(recipe)
    name, first = runs[0]
    console.say(f"{len(runs)} runs; this is about the first, {name}")
    return first
