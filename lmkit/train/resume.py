"""Whether a checkpoint is of this run, and the way back to where it stood."""

from __future__ import annotations

import json
from typing import Any

from lmkit import console
from lmkit.errors import RecipeError, RunError
from lmkit.models.tokenizer import tokenizer_hash
from lmkit.recipe.load import load_recipe
from lmkit.recipe.schema import Recipe
from lmkit.run import Run
from lmkit.train.averages import use_trained
from lmkit.train.checkpoint import load_checkpoint, load_state, newest_whole
from lmkit.train.optim import set_group_values
from lmkit.train.prepare import Prepared
from lmkit.train.progress import Progress
from lmkit.train.setup import Setup


def find_progress(run: Run, recipe: Recipe, prepared: Prepared, *, resume: bool) -> Progress:
    """Return where the run stands: at its newest whole checkpoint, or at the beginning.

    Raises:
        RunError: the checkpoint is of another recipe or of other data. Nothing is written before.
    """
    mark = fingerprint(recipe, prepared)
    step = newest_whole(run) if resume else None
    if step is None:
        return Progress(fingerprint=mark)
    state = load_state(run, step)
    _refuse_another(run, state["fingerprint"], mark)
    return Progress.from_state(state)


def restore(run: Run, setup: Setup, progress: Progress) -> None:
    """Give model and optimizer what they had at the step where ``progress`` stands."""
    if progress.step == 0:
        console.say("resume: no checkpoint yet, starting at step 0")
        return
    load_checkpoint(run, progress.step, setup.model, setup.optimizer, setup.parallelism)
    console.say(f"resume: going on from step {progress.step}")
    set_group_values(setup.optimizer, progress.groups)
    use_trained(setup.optimizer)
    if setup.spikes is not None:
        setup.spikes.norms = list(progress.norms)


def fingerprint(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """Return what must be the same for a resumed run to be the same run: all that is learned from, not how it is run."""
    data = {split: rows.fingerprint for split, rows in prepared.splits.rows.items()}
    return {
        "recipe": _learned_with(recipe),
        "data": data,
        "tokenizer": tokenizer_hash(prepared.task.tokenizer),
    }


def _learned_with(recipe: Recipe) -> dict[str, Any]:
    """Return the keys of a recipe that decide what is learned."""
    harmless = {"name", "seeds", "output", "hardware", "logging", "eval", "generation"}
    values: dict[str, Any] = json.loads(json.dumps(recipe.model_dump(exclude=harmless)))
    for key in (
        "epochs",
        "max_steps",
        "max_minutes",
        "early_stopping",
        "eval_every",
        "on_spike",
        "spike_factor",
    ):
        del values["train"][key]
    for key in ("train", "validation", "test", "folds", "fold"):
        del values["data"][key]  # the content counts, not the path
    return values


def _with_newer_keys(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the fingerprint of a checkpoint, with the defaults of keys that its version of lmkit did not have."""
    try:
        return stored | {"recipe": _learned_with(load_recipe(stored["recipe"]))}
    except RecipeError:  # keys that are no more, which will be named
        return stored


def _refuse_another(run: Run, stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on from the checkpoint of another recipe or of other data, naming the keys."""
    if changed := _differences(_with_newer_keys(stored), now):
        raise RunError(
            f"this run was started with other {', '.join(changed)}",
            place=str(run.path),
            remedy="restore what it was, or start anew with --overwrite or another -o",
        )


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ."""
    changed = []
    for key in old.keys() | new.keys():
        left, right = old.get(key), new.get(key)
        if left == right:
            continue
        if isinstance(left, dict) and isinstance(right, dict):
            changed += _differences(
                left, right, prefix if key == "recipe" and not prefix else f"{prefix}{key}."
            )
        else:
            changed.append(f"{prefix}{key}")
    return sorted(changed)
