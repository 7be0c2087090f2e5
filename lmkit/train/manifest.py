"""What a run says of itself: manifest.json, and the lines before the first step."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.data.plan import Plan
from lmkit.data.splits import provenance
from lmkit.fast.packing import Packing
from lmkit.models.build import Built, count_parameters
from lmkit.models.tokenizer import tokenizer_hash
from lmkit.recipe.schema import Recipe
from lmkit.run import command_line, git_commit, versions
from lmkit.train.device import available_cores, choose_precision
from lmkit.train.plans import UNLIMITED
from lmkit.train.prepare import Prepared

if TYPE_CHECKING:
    from accelerate import Accelerator


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def start_manifest(
    recipe: Recipe,
    prepared: Prepared,
    built: Built,
    accelerator: Accelerator,
    packing: Packing | None,
    plan: Plan,
    total: int,
    *,
    sharded: bool,
) -> dict[str, Any]:
    import torch

    trained, parameters = count_parameters(built.model)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": command_line(),
        "started": now(),
        "task": prepared.task.name,
        "seed": recipe.seed,
        "versions": versions(),
        "git_commit": git_commit(),
        "hardware": {
            "machine": platform.machine(),
            "cores": available_cores(),
            "gpus": gpus,
            "device": str(accelerator.device),
            "processes": accelerator.num_processes,
            "sharded": sharded,
            "precision": choose_precision(recipe.hardware),
            "threads": torch.get_num_threads(),
        },
        "data": provenance(prepared.splits),
        "examples": {split: len(encoded.rows) for split, encoded in prepared.encoded.items()},
        "rejected_rows": len(prepared.splits.rejected),
        "cut_rows": {split: encoded.cut for split, encoded in prepared.encoded.items()},
        "tokenizer": {
            "sha256": tokenizer_hash(prepared.task.tokenizer),
            "size": len(prepared.task.tokenizer),
        },
        "model": built.origin,
        "new_modules": built.new,
        "parent": str(prepared.source.run.resolve())
        if prepared.source and prepared.source.run
        else None,
        "parameters": {"trained": trained, "total": parameters},
        "tokens_per_epoch": prepared.encoded["train"].tokens,
        "steps_per_epoch": plan.steps_per_epoch,
        "planned_steps": total if total < UNLIMITED else None,
        "packing": packing is not None,
    }


def announce(manifest: dict[str, Any], total: int, metric: str | None) -> None:
    parameters, hardware = manifest["parameters"], manifest["hardware"]
    console.say(
        f"model: {manifest['model']}, {parameters['total'] / 1e6:.2f} M parameters"
        + (
            f", {parameters['trained'] / 1e6:.2f} M trained"
            if parameters["trained"] != parameters["total"]
            else ""
        )
    )
    if manifest["new_modules"]:
        console.say(f"new, with random weights: {', '.join(manifest['new_modules'])}")
    steps = f"{total} steps" if total < UNLIMITED else "steps until the time is up"
    console.say(
        f"data: {manifest['examples'].get('train')} rows, {manifest['tokens_per_epoch']} tokens an epoch, {manifest['steps_per_epoch']} steps an epoch; {steps}"
        + f" on {hardware['device']} in {hardware['precision']}"
    )
    console.say(
        f"the checkpoint with the best validation {metric} becomes the model"
        if metric
        else "no validation data to choose by: the last checkpoint becomes the model"
    )
