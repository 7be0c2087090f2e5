"""``lmkit pretrain`` and ``lmkit finetune``: check everything that needs no torch, then train."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.errors import RecipeError
from lmkit.models.source import ModelSource, find_model
from lmkit.recipe import Recipe, load_recipe
from lmkit.recipe.load import dump_recipe, local_paths
from lmkit.run import Run, command_line, write_text
from lmkit.tasks.registry import TASKS, task_class

if TYPE_CHECKING:
    from lmkit.data.splits import Splits

COMMAND_OF = {"pretrain": "lmkit pretrain", "finetune": "lmkit finetune"}


def train(
    stage: str,
    source: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    output: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    smoke: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train a recipe; see the contract for the flags.

    Args:
        stage: ``pretrain`` or ``finetune``; the recipe's task must belong to it.

    Returns:
        The summary that ``--json`` prints.
    """
    recipe = load_recipe(source, overrides)
    from lmkit.commands.evaluate import check_metrics
    from lmkit.commands.repeat import check_repeat, is_repeated, repeat, single_runs
    from lmkit.evaluation.options import check_eval_keys
    from lmkit.models.quantized import check_quantization

    if output is not None:
        recipe = recipe.model_copy(update={"output": str(Path(output).expanduser())})
    check_stage(recipe, stage)
    if recipe.lora is not None and recipe.lora.quantize is not None:
        check_quantization(recipe.lora.quantize)
    check_eval_keys(recipe)
    check_metrics(recipe)
    if is_repeated(recipe):
        check_repeat(recipe)
        if not (smoke or dry_run):
            return repeat(stage, recipe, resume=resume, overwrite=overwrite)
        singles = single_runs(recipe)
        recipe = singles[0][1]
        console.say(f"{len(singles)} runs; this is about the first, {singles[0][0]}")
    if smoke:
        from lmkit.commands.smoke import smoke_run

        return smoke_run(stage, recipe)
    found = find_model(recipe.model.base) if recipe.model.base else None
    check_model_keys(recipe, found)
    run = Run(recipe.output)
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    owns_run = not dry_run and (not launched or console.is_first_process())
    if owns_run:
        run.check_start(resume=resume, overwrite=overwrite)
    from lmkit.data.splits import (
        load_splits,  # after the recipe is known to be right: mistakes in it answer at once
    )

    splits = load_splits(recipe, task_class(recipe.task), wanted=("train", "validation"))
    check_choice(recipe, splits)
    if dry_run:
        from lmkit.commands.dry_run import dry_run_plan

        return dry_run_plan(recipe, splits, found)
    processes = 1 if launched else number_of_processes(recipe)
    if owns_run and overwrite:
        for key, used in local_paths(recipe):
            if Path(used).resolve().is_relative_to(run.path.resolve()):
                raise RecipeError(
                    "lies in the run that --overwrite would remove",
                    place=key,
                    remedy="give another -o/--output",
                )
    if processes > 1:
        summary = _train_in_processes(
            stage, recipe, splits, found, run, processes, resume=resume, overwrite=overwrite
        )
    else:
        from lmkit.train.fit import fit

        summary = fit(recipe, splits, found, run, resume=resume, overwrite=overwrite)
    if not console.is_started_by_lmkit():
        missing = (
            ""
            if recipe.data.test is not None
            or recipe.data.fold is not None
            or "validation" in splits.rows
            else " data.test=FILE"
        )
        console.say(
            f"\ndone in {summary['seconds']:.0f} s: {summary['run']}\nnext: lmkit eval {summary['run']}{missing}"
        )
    return summary


def check_stage(recipe: Recipe, stage: str) -> None:
    """Refuse a recipe without a task, or with one of the other stage."""
    if recipe.task and task_class(recipe.task).stage == stage:
        return
    tasks = f"one of: {', '.join(name for name in TASKS if task_class(name).stage == stage)}"
    if not recipe.task:
        raise RecipeError("no task", place="task", remedy=tasks)
    command = COMMAND_OF[task_class(recipe.task).stage]
    raise RecipeError(
        f"{recipe.task} is not for lmkit {stage}", place="task", remedy=f"use {command}, or {tasks}"
    )


def check_model_keys(recipe: Recipe, found: ModelSource | None) -> None:
    """What can be said of the model section before torch is there."""
    from lmkit.models.adapters import check_adapter_keys
    from lmkit.models.presets import is_encoder_decoder, preset_config
    from lmkit.train.optim import check_optimizer

    check_adapter_keys(recipe)
    check_optimizer(recipe)
    model = recipe.model
    if model.base and model.preset:
        raise RecipeError(
            "given beside model.base", place="model.preset", remedy="keep one of the two"
        )
    if model.preset:
        preset_config(model.preset, max_length=recipe.data.max_length)
        if task_class(recipe.task).generates and not is_encoder_decoder(model.preset):
            raise RecipeError(
                f"{model.preset} is no encoder-decoder, and {recipe.task} needs one",
                place="model.preset",
                remedy=f"for example {task_class(recipe.task).family}-mini",
            )
    if found is None and not model.preset and "model_type" not in model.config:
        raise RecipeError(
            "no model: neither model.base nor model.preset is given",
            place="model",
            remedy="model.base=RUN_OR_DIRECTORY for trained weights, model.preset=bert-mini for random ones",
        )
    if recipe.lora is not None and found is None:
        raise RecipeError(
            "LoRA adapts trained weights, and this model starts from random ones",
            place="lora",
            remedy="give model.base, or lora=null",
        )
    if found is None and recipe.tokenizer.base is None and recipe.tokenizer.train is None:
        raise RecipeError(
            "a model with random weights has no tokenizer",
            place="tokenizer",
            remedy="tokenizer.train={algorithm: bpe, vocab_size: 8000} learns one from data.train; or give tokenizer.base",
        )
    _check_joint(recipe)
    if found is not None and recipe.tokenizer.train is not None:
        raise RecipeError(
            "a new tokenizer does not fit the weights of model.base",
            place="tokenizer.train",
            remedy="leave it out, or start from random weights with model.preset",
        )


def _check_joint(recipe: Recipe) -> None:
    """Refuse two tokenizers where there is no model, or no text, for two."""
    if recipe.tokenizer.train is None or recipe.tokenizer.train.joint:
        return
    family = recipe.model.config.get("model_type") or (recipe.model.preset or "").partition("-")[0]
    problem, remedy = None, "leave it out"
    if recipe.task != "translation":
        problem = "has no effect: only translation has two languages"
    elif recipe.tokenizer.train.files is not None:
        problem, remedy = (
            "given beside tokenizer.train.files, which do not say what language they are",
            "learn from data.train",
        )
    elif family != "marian":
        problem, remedy = (
            f"{family} has one vocabulary for both languages",
            "leave it out, or take model.preset=marian-mini",
        )
    if problem:
        raise RecipeError(problem, place="tokenizer.train.joint", remedy=remedy)


def check_choice(recipe: Recipe, splits: Splits) -> None:
    """Refuse a ``train.select_best`` that the task, which may depend on the labels, does not know."""
    from lmkit.train.plans import metric_of

    metric_of(
        recipe, task_class(recipe.task)(recipe, splits.facts, None), "validation" in splits.rows
    )


def number_of_processes(recipe: Recipe) -> int:
    """``hardware.processes``, where auto is one per GPU."""
    if recipe.hardware.processes != "auto":
        return recipe.hardware.processes
    from lmkit.models.imports import import_torch

    import_torch()
    import torch

    return max(1, torch.cuda.device_count())


def _train_in_processes(
    stage: str,
    recipe: Recipe,
    splits: Splits,
    found: ModelSource | None,
    run: Run,
    processes: int,
    *,
    resume: bool,
    overwrite: bool,
) -> dict[str, Any]:
    """Tokenise here, so that no process group waits for it (promise 20); then start the processes on the same recipe.

    The run directory is left to the first of them: it removes an old run under its lock, once it is known that this one can begin.
    """
    import tempfile

    from lmkit.train.launch import ProcessFailed, launch
    from lmkit.train.prepare import prepare

    prepare(recipe, splits, found)
    with tempfile.TemporaryDirectory(prefix="lmkit-") as folder:
        file = Path(folder) / f"{recipe.name}.yaml"
        values = recipe.model_copy(update={"output": str(run.path.resolve())})
        write_text(
            file,
            dump_recipe(
                values.model_copy(
                    update={"hardware": recipe.hardware.model_copy(update={"processes": processes})}
                )
            ),
        )
        started = {"--resume": resume, "--overwrite": overwrite}
        flags = started | {
            "--json": console.is_json(),
            "--quiet": console.is_quiet(),
            "--verbose": console.is_verbose(),
        }
        os.environ[console.STARTED_AS] = json.dumps(command_line())
        try:
            chosen = [flag for flag, is_set in flags.items() if is_set]
            launch(["-m", "lmkit", stage, str(file), *chosen], processes=processes)
        except ProcessFailed as error:
            if error.is_killed:
                console.fail(
                    f"{error}; often the memory is full\n  --resume goes on from the last checkpoint"
                )
            raise
        finally:
            del os.environ[console.STARTED_AS]
    return {"run": str(run.path), "task": recipe.task, "processes": processes, **_summary(run)}


def _summary(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    validation = run.metrics("validation") if run.eval_folder("validation").is_dir() else {}
    return {
        "steps": manifest["steps"],
        "tokens": manifest["tokens_seen"],
        "seconds": manifest["seconds"],
        "best_step": manifest["best_step"],
        "validation": validation,
    }
