"""Losses, gradients and predictions of a recipe, measured so that two ways of cutting the work can be compared."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lmkit.data.splits import Splits
from lmkit.evaluation.evaluate import measure
from lmkit.evaluation.forward import Forward
from lmkit.models.source import ModelSource
from lmkit.recipe.schema import Recipe
from lmkit.train.batches import StepBatches
from lmkit.train.loop import train_steps
from lmkit.train.prepare import prepare
from lmkit.train.setup import Computation, Setup, set_up


class Recorder(torch.optim.SGD):
    """An optimizer that keeps the gradients and changes nothing."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.gradients = [
            p.grad.detach().cpu().clone()
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]


@dataclass(frozen=True)
class Measured:
    """Losses of all steps, ``(steps,)``, and their gradients, one after the other in a vector per step."""

    losses: torch.Tensor
    gradients: list[torch.Tensor]

    def differences(self, other: Measured) -> tuple[float, float]:
        """Return the largest difference of a loss over that loss, and of a gradient over the largest one of all steps.

        Of all steps: in a step of a few rows with opposite labels gradients cancel out, and what is left is rounding.
        """
        shapes = [gradient.shape for gradient in self.gradients]
        if shapes != [gradient.shape for gradient in other.gradients]:
            return float("inf"), float("inf")
        largest = max(float(gradient.abs().max()) for gradient in self.gradients)
        pairs = zip(self.gradients, other.gradients, strict=True)
        distances = torch.stack([(left - right).abs().max() for left, right in pairs])
        apart = distances.max().item()  # NaN stays NaN
        loss = ((self.losses - other.losses).abs() / self.losses.abs().clamp(min=1e-9)).max().item()
        return loss, apart / max(largest, 1e-30)

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        save_file(
            {
                "losses": self.losses,
                **{f"{i:06d}": values for i, values in enumerate(self.gradients)},
            },
            path,
        )

    @classmethod
    def load(cls, path: Path) -> Measured:
        from safetensors.torch import load_file

        stored = load_file(path)
        losses = stored.pop("losses")
        return cls(losses, [stored[name] for name in sorted(stored)])


@dataclass(frozen=True)
class Predicted:
    """Records of a split and their loss."""

    loss: float
    records: list[dict[str, Any]]

    def differences(self, other: Predicted) -> tuple[float, float]:
        """Return the relative difference of the losses, and the largest one of the predictions: infinite if a word differs."""
        loss = abs(self.loss - other.loss) / max(abs(self.loss), 1e-9)
        return loss, _apart(self.records, other.records)


def _apart(left: Any, right: Any) -> float:
    """Return the largest difference of two JSON values, of numbers above 1 a relative one."""
    if isinstance(left, float) and isinstance(right, float):
        if math.isnan(left) or math.isnan(right):
            return 0.0 if math.isnan(left) and math.isnan(right) else math.inf
        return abs(left - right) / max(1.0, abs(left))
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return max((_apart(value, right[key]) for key, value in left.items()), default=0.0)
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return max((_apart(*pair) for pair in zip(left, right, strict=True)), default=0.0)
    return 0.0 if left == right else float("inf")


class Bench:
    """The set-up of a recipe's run: steps that are measured and change nothing.

    Args:
        recipe: fp32 and without dropout, or nothing can be compared.
    """

    def __init__(self, recipe: Recipe, splits: Splits, source: ModelSource | None):
        self.setup = set_up(recipe, prepare(recipe, splits, source))
        self.setup.total = self.setup.plan.steps_per_epoch
        self.setup.spikes = None
        self.budget = self.setup.batches.budget
        self.packing = self.setup.computation.packing
        recorder = Recorder(self.setup.parameters, lr=0.0)
        self.setup.optimizer = self.setup.parallelism.prepare_optimizer(recorder)

    def steps(self, *, budget: int, packed: bool = False, workers: int = 0) -> Measured:
        """Measure loss and gradients of every step of the first epoch, through the training loop.

        Args:
            budget: tokens of a micro-batch. packed: texts share rows.
        """
        setup, recorder = self._varied(budget, packed, workers), self.setup.optimizer.optimizer
        losses, gradients = [], []
        for step in train_steps(setup):
            losses.append(step.loss.cpu().double())
            gradients.append(torch.cat([part.flatten() for part in recorder.gradients]))
        return Measured(torch.stack(losses), gradients)

    def _varied(self, budget: int, packed: bool, workers: int) -> Setup:
        """Return the set-up with the work cut otherwise."""
        recipe, batches = self.setup.recipe, self.setup.batches
        hardware = recipe.hardware.model_copy(update={"workers": workers})
        return replace(
            self.setup,
            recipe=recipe.model_copy(update={"hardware": hardware}),
            computation=Computation(
                self.setup.computation.is_fast, self.packing if packed else None
            ),
            batches=StepBatches(
                batches.encoded,
                batches.plan,
                batches.task,
                rank=batches.rank,
                budget=budget,
                packed=packed,
            ),
        )

    def evaluation(self, *, budget: int) -> Predicted:
        """Measure predictions and loss of the validation rows."""
        setup = self.setup
        forward = Forward(setup.task, setup.model, setup.parallelism, budget)
        records = list(forward.predictions(setup.prepared.encoded["validation"]))
        loss = measure(records, setup.task, seconds=0).loss
        return Predicted(loss, [record.to_json() for record in records])
