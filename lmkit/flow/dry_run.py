"""``--dry-run``: everything is checked, one micro-batch is computed, nothing is learned or written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.data.splits import Splits
from lmkit.models.source import ModelSource
from lmkit.recipe import Recipe

if TYPE_CHECKING:
    from lmkit.train.setup import Setup


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
    from lmkit.train.plans import checkpoint_interval, metric_of
    from lmkit.train.prepare import prepare
    from lmkit.train.setup import decide, decide_compile, set_up

    hardware = recipe.hardware.model_copy(update={"processes": "auto"})
    prepared = prepare(recipe, splits, source)
    setup = set_up(recipe.model_copy(update={"hardware": hardware}), prepared)
    checkpoint_interval(recipe)
    metric = metric_of(recipe, setup.task.facts, "validation" in prepared.encoded)
    decide(setup)
    if hardware.compile == "on":
        decide_compile(setup)
    return _plan(setup, metric, _seconds_of_a_step(setup))


def _plan(setup: Setup, metric: str | None, seconds: float) -> DryRunPlan:
    """Return the plan of a run whose steps take so many seconds."""
    from lmkit.train.device import choose_precision, peak_memory_bytes
    from lmkit.train.optim import state_bytes
    from lmkit.train.plans import UNLIMITED

    recipe, prepared, encoded = setup.recipe, setup.prepared, setup.encoded
    total, steps_per_epoch = setup.total, setup.plan.steps_per_epoch
    trained, parameters = setup.parameter_counts
    is_limited = total < UNLIMITED
    limit = (recipe.train.max_minutes or 0) * 60
    return DryRunPlan(
        task=setup.task.name,
        rows={split: len(part.rows) for split, part in prepared.encoded.items()},
        rejected_rows=len(prepared.splits.rejected),
        examples=len(encoded),
        tokens_per_epoch=encoded.tokens,
        steps_per_epoch=steps_per_epoch,
        steps=total if is_limited else None,
        tokens=round(encoded.tokens * total / steps_per_epoch) if is_limited else None,
        parameters=Parameters(trained, parameters),
        precision=choose_precision(recipe.hardware),
        packing=setup.computation.packing is not None,
        selected_by=metric,
        predicted_peak_memory_bytes=peak_memory_bytes() + state_bytes(recipe.train, trained),
        predicted_seconds=round(seconds * total, 1) if is_limited else limit,
        output=recipe.output,
    )


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
