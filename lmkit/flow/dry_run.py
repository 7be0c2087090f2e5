"""``--dry-run``: everything is checked, one micro-batch is computed, nothing is learned or written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lmkit import console
from lmkit.data.splits import Splits
from lmkit.models.source import ModelSource
from lmkit.recipe import Recipe


@dataclass(frozen=True)
class Parameters:
    """The numbers of parameters of a model."""

    trained: int
    total: int


@dataclass(frozen=True)
class DryRunPlan:
    """A run that was not made.

    Args:
        rows: how many each split has.
        examples: what ``train.batch_size`` counts.
        steps, tokens: of the whole run; None where only the time ends it.
        selected_by: the validation metric that chooses the model; None: the last step is kept.
        predicted_seconds: without evaluations.
    """

    task: str
    rows: Mapping[str, int]
    rejected_rows: int
    examples: int
    tokens_per_epoch: int
    steps_per_epoch: int
    steps: int | None
    tokens: int | None
    parameters: Parameters
    precision: str
    packing: bool
    selected_by: str | None
    predicted_peak_memory_bytes: int
    predicted_seconds: float
    output: str

    def to_json(self) -> dict[str, Any]:
        return {"dry_run": True, **asdict(self)}

    def to_text(self) -> str:
        steps = "until the time is up" if self.steps is None else f"{self.steps:,}"
        chosen_by = f"validation {self.selected_by}" if self.selected_by else "the last step"
        parameters = f"{self.parameters.total:,} ({self.parameters.trained:,} trained)"
        minutes = f"{self.predicted_seconds / 60:.1f} minutes, evaluations not counted"
        rows = [
            ["rows", ", ".join(f"{split} {count}" for split, count in self.rows.items())],
            ["rows left out", str(self.rejected_rows)],
            ["tokens an epoch", f"{self.tokens_per_epoch:,}"],
            ["steps an epoch", f"{self.steps_per_epoch:,}"],
            ["steps", steps],
            ["parameters", parameters],
            ["precision", self.precision],
            ["model chosen by", chosen_by],
            ["peak memory, predicted", f"{self.predicted_peak_memory_bytes / 2**30:.2f} GiB"],
            ["time, predicted", minutes],
            ["output", self.output],
        ]
        return console.table(["plan", ""], rows)


def dry_run_plan(recipe: Recipe, splits: Splits, source: ModelSource | None) -> DryRunPlan:
    """Plan a run: tokens, steps, parameters, and predicted peak memory and time, from the gradients of one whole step.

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
    is_limited = total < UNLIMITED
    return DryRunPlan(
        task=task.name,
        rows={split: len(part.rows) for split, part in prepared.encoded.items()},
        rejected_rows=len(prepared.splits.rejected),
        examples=len(encoded),
        tokens_per_epoch=encoded.tokens,
        steps_per_epoch=plan.steps_per_epoch,
        steps=total if is_limited else None,
        tokens=round(encoded.tokens * total / plan.steps_per_epoch) if is_limited else None,
        parameters=Parameters(trained, parameters),
        precision=choose_precision(recipe.hardware),
        packing=packing is not None,
        selected_by=metric,
        predicted_peak_memory_bytes=memory,
        predicted_seconds=round(seconds * total, 1)
        if is_limited
        else (recipe.train.max_minutes or 0) * 60,
        output=recipe.output,
    )
