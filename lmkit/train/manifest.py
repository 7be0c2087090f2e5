"""What a run says of itself: manifest.json, and the lines before the first step."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import Any

from lmkit import console
from lmkit.data.splits import provenance
from lmkit.models.tokenizer import tokenizer_hash
from lmkit.records import Ending, Manifest
from lmkit.run import command_line, git_commit, versions
from lmkit.train.decisions import ATTENTION, COMPILE, KERNELS, Decision
from lmkit.train.device import available_cores, choose_precision, peak_memory_bytes
from lmkit.train.plans import UNLIMITED
from lmkit.train.progress import Progress
from lmkit.train.setup import Setup


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def start_manifest(setup: Setup) -> Manifest:
    """Return what is known before the first step."""
    import torch

    prepared = setup.prepared
    trained, parameters = setup.parameter_counts
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    source = prepared.source
    return Manifest(
        command=command_line(),
        started=now(),
        task=setup.task.name,
        seed=setup.recipe.seed,
        versions=versions(),
        git_commit=git_commit(),
        hardware={
            "machine": platform.machine(),
            "cores": available_cores(),
            "gpus": gpus,
            "device": str(setup.parallelism.device),
            "processes": setup.parallelism.ranks,
            "sharded": setup.parallelism.is_sharded,
            "precision": choose_precision(setup.recipe.hardware),
            "threads": torch.get_num_threads(),
        },
        data=provenance(prepared.splits),
        examples={split: len(encoded.rows) for split, encoded in prepared.encoded.items()},
        rejected_rows=len(prepared.splits.rejected),
        cut_rows={split: encoded.cut for split, encoded in prepared.encoded.items()},
        tokenizer={
            "sha256": tokenizer_hash(prepared.task.tokenizer),
            "size": len(prepared.task.tokenizer),
        },
        model=setup.origin,
        new_modules=list(setup.new_modules),
        parent=str(source.run.resolve()) if source and source.run else None,
        parameters={"trained": trained, "total": parameters},
        tokens_per_epoch=setup.encoded.tokens,
        steps_per_epoch=setup.plan.steps_per_epoch,
        planned_steps=setup.total if setup.total < UNLIMITED else None,
        packing=setup.computation.packing is not None,
    )


def end_of(setup: Setup, progress: Progress, averaged_steps: list[int], seconds: float) -> Ending:
    """Return what is known after the last step.

    Args:
        averaged_steps: checkpoints whose mean the model is.
        seconds: from the start of the run to its end.
    """
    decisions = setup.decisions_now()
    return Ending(
        finished=now(),
        steps=progress.step,
        best_step=progress.best_step,
        averaged_steps=averaged_steps,
        tokens_seen=progress.tokens,
        micro_batch_tokens=setup.batches.budget,
        compiled=_outcome(decisions.get(COMPILE)),
        attention=_outcome(decisions.get(ATTENTION)),
        kernels=_outcome(decisions.get(KERNELS)),
        decisions=[decision.for_manifest() for decision in decisions.values()],
        skipped_steps=progress.skipped,
        seconds=round(progress.seconds, 3),
        seconds_in_all=round(seconds, 3),
        peak_memory_bytes=peak_memory_bytes(),
    )


def _outcome(decision: Decision | None) -> dict[str, Any]:
    if decision is None:
        return {"on": None, "why": None}
    return {"on": decision.chosen, "why": decision.why}


def announce(manifest: Manifest, total: int, metric: str | None) -> None:
    """Say what the run starts from, and what becomes the model."""
    trained, parameters = manifest.parameters["trained"], manifest.parameters["total"]
    part = f", {trained / 1e6:.2f} M trained" if trained != parameters else ""
    console.say(f"model: {manifest.model}, {parameters / 1e6:.2f} M parameters{part}")
    if manifest.new_modules:
        console.say(f"new, with random weights: {', '.join(manifest.new_modules)}")
    steps = f"{total} steps" if total < UNLIMITED else "steps until the time is up"
    console.say(
        f"data: {manifest.examples.get('train')} rows, {manifest.tokens_per_epoch} tokens an epoch, "
        f"{manifest.steps_per_epoch} steps an epoch; {steps} "
        f"on {manifest.hardware['device']} in {manifest.hardware['precision']}"
    )
    if metric is None:
        console.say("no validation data to choose by: the last checkpoint becomes the model")
    else:
        console.say(f"the checkpoint with the best validation {metric} becomes the model")
