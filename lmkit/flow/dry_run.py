"""``--dry-run``: everything is checked, one micro-batch is computed, nothing is learned or written."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.data.splits import Splits
from lmkit.models.source import ModelSource
from lmkit.recipe import Recipe

if TYPE_CHECKING:
    from lmkit.train.setup import Setup


def dry_run_plan(recipe: Recipe, splits: Splits, source: ModelSource | None) -> dict[str, Any]:
    """Count tokens, steps and parameters, and predict memory and time from the gradients of one whole step.

    The time is that of one forward and backward pass of a middling step, times the number of steps: the
    optimizer's share is left out. The memory is what the pass took at its peak, with room for the optimizer's state.
    """
    from lmkit.train.device import choose_precision, peak_memory_bytes
    from lmkit.train.optim import state_bytes
    from lmkit.train.plans import UNLIMITED, checkpoint_interval, metric_of
    from lmkit.train.prepare import prepare
    from lmkit.train.setup import decide, decide_compile, set_up

    hardware = recipe.hardware.model_copy(update={"processes": "auto"})
    prepared = prepare(recipe, splits, source)
    setup = set_up(recipe.model_copy(update={"hardware": hardware}), prepared)
    checkpoint_interval(recipe)
    metric = metric_of(recipe, setup.task, "validation" in prepared.encoded)
    decide(setup)
    if hardware.compile == "on":
        decide_compile(setup)
    seconds = _seconds_of_a_step(setup)
    task, encoded, plan, total = setup.task, setup.encoded, setup.plan, setup.total
    trained, parameters = setup.parameter_counts
    memory = peak_memory_bytes() + state_bytes(recipe.train, trained)
    limited = total < UNLIMITED
    found: dict[str, Any] = {
        "dry_run": True,
        "task": task.name,
        "rows": {split: len(each.rows) for split, each in prepared.encoded.items()},
        "rejected_rows": len(prepared.splits.rejected),
        "examples": len(encoded),
        "tokens_per_epoch": encoded.tokens,
        "steps_per_epoch": plan.steps_per_epoch,
        "steps": total if limited else None,
        "tokens": round(encoded.tokens * total / plan.steps_per_epoch) if limited else None,
        "parameters": {"trained": trained, "total": parameters},
        "precision": choose_precision(recipe.hardware),
        "packing": setup.computation.packing is not None,
        "selected_by": metric,
        "predicted_peak_memory_bytes": memory,
        "predicted_seconds": round(seconds * total, 1)
        if limited
        else (recipe.train.max_minutes or 0) * 60,
        "output": recipe.output,
    }
    rows = [
        ["rows", ", ".join(f"{split} {count}" for split, count in found["rows"].items())],
        ["rows left out", found["rejected_rows"]],
        ["tokens an epoch", f"{encoded.tokens:,}"],
        ["steps an epoch", f"{plan.steps_per_epoch:,}"],
        ["steps", f"{total:,}" if limited else "until the time is up"],
        ["parameters", f"{parameters:,} ({trained:,} trained)"],
        ["precision", found["precision"]],
        ["model chosen by", f"validation {metric}" if metric else "the last step"],
        ["peak memory, predicted", f"{memory / 2**30:.2f} GiB"],
        [
            "time, predicted",
            f"{found['predicted_seconds'] / 60:.1f} minutes, evaluations not counted",
        ],
        ["output", recipe.output],
    ]
    console.say(console.table(["plan", ""], rows))
    return found


def _seconds_of_a_step(setup: Setup) -> float:
    """Measure forward and backward of the first step, once more after it has warmed up."""
    from lmkit.train.device import wait_for_device

    setup.model.train()
    seconds = 0.0
    for _ in range(2):
        setup.drop_gradients()
        begun = time.perf_counter()
        setup.backward(0)
        wait_for_device(setup.parallelism.device)
        seconds = time.perf_counter() - begun
    return seconds
