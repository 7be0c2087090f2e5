"""What a recipe's train section comes to on its data: how many steps, chosen by what, saved when."""

from __future__ import annotations

import math

from lmkit.data.encode import Encoded
from lmkit.data.plan import Plan
from lmkit.errors import RecipeError, suggest
from lmkit.recipe.schema import Recipe
from lmkit.tasks.base import Facts
from lmkit.tasks.registry import problem

UNLIMITED = 10**8  # steps, where only the time ends a run


def plan_of(recipe: Recipe, encoded: Encoded) -> Plan:
    """Plan which examples of the training split make each step."""
    train = recipe.train
    return Plan(
        len(encoded),
        train.batch_size,
        recipe.seed,
        encoded.sides() if train.group_by_length else None,
    )


def total_steps(recipe: Recipe, plan: Plan) -> int:
    """Count the steps of the whole run: whichever of epochs and max_steps ends first; with max_minutes alone, more than will fit."""
    train = recipe.train
    epochs = (
        train.epochs if train.epochs is not None or train.max_steps or train.max_minutes else 3.0
    )
    limits = [train.max_steps, math.ceil(epochs * plan.steps_per_epoch) if epochs else None]
    given = [limit for limit in limits if limit is not None]
    return min(given) if given else UNLIMITED


def metric_of(recipe: Recipe, facts: Facts, with_validation: bool) -> str | None:
    """Return the metric that chooses the checkpoint; None: the last one is kept."""
    chosen = recipe.train.select_best
    if recipe.train.early_stopping is not None and (chosen == "last" or not with_validation):
        raise RecipeError(
            "has no effect where nothing is evaluated",
            place="train.early_stopping",
            remedy="give validation data, and a metric in train.select_best; or leave it out",
        )
    if chosen == "last" or (chosen is None and not with_validation):
        return None
    if not with_validation:
        raise RecipeError(
            "there is no validation data to choose by",
            place="train.select_best",
            remedy="give data.validation or data.validation_fraction, or select_best: last",
        )
    metrics = problem(recipe.task).selecting(facts)
    if chosen is not None and chosen not in metrics:
        raise RecipeError(
            f"{recipe.task} has no metric {chosen!r}",
            place="train.select_best",
            remedy=suggest(chosen, metrics),
        )
    return chosen or metrics[0]


def evaluation_interval(recipe: Recipe, plan: Plan) -> int:
    """Return the steps from one evaluation to the next."""
    every = recipe.train.eval_every
    return max(1, round(every * plan.steps_per_epoch)) if every <= 1 else int(every)


def checkpoint_interval(recipe: Recipe) -> tuple[int | None, float | None]:
    """Return (steps, seconds) from one checkpoint to the next, one or none of them.

    Raises:
        RecipeError: neither a number of steps nor minutes like "10min".
    """
    every = recipe.hardware.checkpoint_every
    if every is None or isinstance(every, int):
        return every, None
    if every.endswith("min"):
        try:
            return None, float(every.removesuffix("min")) * 60
        except ValueError:
            pass
    raise RecipeError(
        f"{every!r} is neither a number of steps nor minutes",
        place="hardware.checkpoint_every",
        remedy='for example 500, or "10min"',
    )
