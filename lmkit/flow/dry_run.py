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
    from lmkit.train.plans import checkpoint_interval, metric_of
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
    plan = _plan(setup, metric, _seconds_of_a_step(setup))
    console.say(console.table(["plan", ""], _lines(plan)))
    return plan


def _plan(setup: Setup, metric: str | None, seconds: float) -> dict[str, Any]:
    """Return the plan for ``--json``.

    Args:
        seconds: of a step.
    """
    from lmkit.train.device import choose_precision, peak_memory_bytes
    from lmkit.train.optim import state_bytes
    from lmkit.train.plans import UNLIMITED

    recipe, prepared, encoded = setup.recipe, setup.prepared, setup.encoded
    total, steps_per_epoch = setup.total, setup.plan.steps_per_epoch
    trained, parameters = setup.parameter_counts
    is_limited = total < UNLIMITED
    minutes = recipe.train.max_minutes or 0
    return {
        "dry_run": True,
        "task": setup.task.name,
        "rows": {split: len(part.rows) for split, part in prepared.encoded.items()},
        "rejected_rows": len(prepared.splits.rejected),
        "examples": len(encoded),
        "tokens_per_epoch": encoded.tokens,
        "steps_per_epoch": steps_per_epoch,
        "steps": total if is_limited else None,
        "tokens": round(encoded.tokens * total / steps_per_epoch) if is_limited else None,
        "parameters": {"trained": trained, "total": parameters},
        "precision": choose_precision(recipe.hardware),
        "packing": setup.computation.packing is not None,
        "selected_by": metric,
        "predicted_peak_memory_bytes": peak_memory_bytes() + state_bytes(recipe.train, trained),
        "predicted_seconds": round(seconds * total, 1) if is_limited else minutes * 60,
        "output": recipe.output,
    }


def _lines(plan: dict[str, Any]) -> list[list[Any]]:
    """Return the plan for people."""
    rows = ", ".join(f"{split} {count}" for split, count in plan["rows"].items())
    steps, metric = plan["steps"], plan["selected_by"]
    trained, parameters = plan["parameters"]["trained"], plan["parameters"]["total"]
    memory = plan["predicted_peak_memory_bytes"] / 2**30
    minutes = plan["predicted_seconds"] / 60
    return [
        ["rows", rows],
        ["rows left out", plan["rejected_rows"]],
        ["tokens an epoch", f"{plan['tokens_per_epoch']:,}"],
        ["steps an epoch", f"{plan['steps_per_epoch']:,}"],
        ["steps", "until the time is up" if steps is None else f"{steps:,}"],
        ["parameters", f"{parameters:,} ({trained:,} trained)"],
        ["precision", plan["precision"]],
        ["model chosen by", f"validation {metric}" if metric else "the last step"],
        ["peak memory, predicted", f"{memory:.2f} GiB"],
        ["time, predicted", f"{minutes:.1f} minutes, evaluations not counted"],
        ["output", plan["output"]],
    ]


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
