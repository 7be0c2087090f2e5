"""``--dry-run``: everything is checked, one micro-batch is computed, nothing is learned or written."""

from __future__ import annotations

import time
from typing import Any

from lmkit import console
from lmkit.data.splits import Splits
from lmkit.models.source import ModelSource
from lmkit.recipe import Recipe


def dry_run_plan(recipe: Recipe, splits: Splits, source: ModelSource | None) -> dict[str, Any]:
    """Tokens, steps, parameters, and predicted peak memory and time, from the gradients of one whole step.

    The time is that of one forward and backward pass of a middling step, times the number of steps: the
    optimizer's share is left out. The memory is what the pass took at its peak, with room for the optimizer's state.
    """
    from lmkit.fast.unpadding import choose_packing, shared_rows
    from lmkit.models.build import build_model, count_parameters
    from lmkit.train.device import (
        build_accelerator,
        choose_precision,
        micro_batch_tokens,
        peak_memory_bytes,
    )
    from lmkit.train.loop import StepBatches
    from lmkit.train.optim import state_bytes
    from lmkit.train.plans import UNLIMITED, checkpoint_interval, metric_of, plan_of, total_steps
    from lmkit.train.prepare import prepare

    prepared = prepare(recipe, splits, source)
    task, encoded = prepared.task, prepared.encoded["train"]
    accelerator = build_accelerator(recipe.hardware.model_copy(update={"processes": "auto"}))
    built = build_model(recipe, task, source)
    checkpoint_interval(recipe)
    metric = metric_of(recipe, task.facts, "validation" in prepared.encoded)
    packing = choose_packing(recipe, task.problem, built.model)
    plan = plan_of(recipe, encoded)
    total = total_steps(recipe, plan)
    budget = micro_batch_tokens(recipe.hardware, accelerator.device)
    model = accelerator.prepare_model(
        built.model, evaluation_mode=True
    ).train()  # that is: without DistributedDataParallel
    batches = StepBatches(
        encoded, plan, task, rank=0, ranks=1, budget=budget, packed=packing is not None
    )
    seconds = 0.0
    for _ in range(2):  # the first pass warms up
        begun = time.perf_counter()
        for batch in batches[0]:
            with shared_rows(model, packing, batch.to(accelerator.device)) as given:
                accelerator.backward(task.loss(model, given))
        if accelerator.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
    trained, parameters = count_parameters(model)
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
        "packing": packing is not None,
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
