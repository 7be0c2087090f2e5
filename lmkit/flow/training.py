"""Train one checked recipe, in this process or in several that are started for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lmkit import console
from lmkit.errors import RecipeError
from lmkit.models.source import find_model
from lmkit.preflight import check_choice, check_model_keys
from lmkit.recipe import Recipe
from lmkit.recipe.load import dump_recipe
from lmkit.recipe.paths import local_paths
from lmkit.records import Manifest, Metrics
from lmkit.run import Run, command_line, write_text
from lmkit.startup import importing
from lmkit.tasks.registry import problem
from lmkit.train.summary import TrainingSummary


def train_one(
    stage: str, recipe: Recipe, *, resume: bool = False, overwrite: bool = False
) -> TrainingSummary:
    """Train a recipe that stands for one run."""
    source = find_model(recipe.model.base) if recipe.model.base else None
    check_model_keys(recipe, source)
    run = Run(recipe.output)
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    owns_run = not launched or console.is_first_process()
    if owns_run:
        run.check_start(resume=resume, overwrite=overwrite)
    # after the recipe is known to be right: mistakes in it answer at once
    from lmkit.data.splits import load_splits

    splits = load_splits(recipe, problem(recipe.task), wanted=("train", "validation"))
    check_choice(recipe, splits)
    processes = 1 if launched else number_of_processes(recipe)
    if owns_run and overwrite:
        _refuse_sources_inside(run, recipe)
    if processes > 1:
        from lmkit.train.prepare import prepare

        prepare(recipe, splits, source)  # tokens, so that no process waits for them
        chosen = {"--resume": resume, "--overwrite": overwrite}
        summary = _train_in_processes(
            stage, recipe, processes, [flag for flag, is_set in chosen.items() if is_set]
        )
    else:
        from lmkit.train.fit import fit

        summary = fit(recipe, splits, source, run, resume=resume, overwrite=overwrite)
    if not console.is_started_by_lmkit():
        data = recipe.data
        is_measurable = data.test is not None or data.fold is not None
        missing = "" if is_measurable or "validation" in splits.rows else " data.test=FILE"
        console.say(f"\ndone in {summary.seconds:.0f} s: {summary.run}")
        console.say(f"next: lmkit eval {summary.run}{missing}")
    return summary


def _refuse_sources_inside(run: Run, recipe: Recipe) -> None:
    """Refuse files of the recipe that lie in the run which is about to be removed."""
    for key, path in local_paths(recipe):
        if Path(path).resolve().is_relative_to(run.path.resolve()):
            raise RecipeError(
                "lies in the run that --overwrite would remove",
                place=key,
                remedy="give another -o/--output",
            )


def number_of_processes(recipe: Recipe) -> int:
    """Return ``hardware.processes``, where auto is one per GPU."""
    if recipe.hardware.processes != "auto":
        return recipe.hardware.processes
    with importing():
        import torch

    return max(1, torch.cuda.device_count())


def _train_in_processes(
    stage: str, recipe: Recipe, processes: int, flags: list[str]
) -> TrainingSummary:
    """Start processes that train the recipe, each as a command of its own.

    The run directory is left to the first of them: it removes an old run under its lock, once it is known that this one can begin.
    """
    import tempfile

    from lmkit.train.launch import ProcessFailed, launch

    run = Run(recipe.output)
    levels = {
        "--json": console.is_json(),
        "--quiet": console.is_quiet(),
        "--verbose": console.is_verbose(),
    }
    flags = flags + [flag for flag, is_set in levels.items() if is_set]
    hardware = recipe.hardware.model_copy(update={"processes": processes})
    values = {"output": str(run.path.resolve()), "hardware": hardware}
    with tempfile.TemporaryDirectory(prefix="lmkit-") as folder:
        file = Path(folder) / f"{recipe.name}.yaml"
        write_text(file, dump_recipe(recipe.model_copy(update=values)))
        os.environ[console.STARTED_AS] = json.dumps(command_line())
        try:
            launch(["-m", "lmkit", stage, str(file), *flags], processes=processes)
        except ProcessFailed as error:
            if error.is_killed:
                console.fail(
                    f"{error}; often the memory is full\n  --resume goes on from the last checkpoint"
                )
            raise
        finally:
            del os.environ[console.STARTED_AS]
    ending, validation = Manifest.from_json(run.manifest).ending, None
    assert ending is not None
    if run.eval_folder("validation").is_dir():
        validation = Metrics.from_json(run.metrics("validation"))
    return TrainingSummary(
        run=str(run.path),
        task=recipe.task,
        steps=ending.steps,
        tokens=ending.tokens_seen,
        seconds=ending.seconds,
        best_step=ending.best_step,
        validation=validation,
        processes=processes,
    )
