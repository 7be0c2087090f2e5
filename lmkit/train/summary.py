"""What a training run comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainingSummary:
    """A finished training run.

    Args:
        run: its directory.
        selected_by: the validation metric that chose the model; None: the last step is kept.
        validation: the content of metrics.json; empty without validation rows.
        processes: how many were started for it; None: it was trained in this one.
    """

    run: str
    task: str
    steps: int
    tokens: int
    seconds: float
    best_step: int | None
    selected_by: str | None = None
    validation: Mapping[str, Any] = field(default_factory=dict)
    processes: int | None = None

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {"run": self.run, "task": self.task}
        if self.processes is not None:
            values["processes"] = self.processes
        values |= {"steps": self.steps, "tokens": self.tokens, "seconds": self.seconds}
        if self.processes is None:
            values["selected_by"] = self.selected_by
        return values | {"best_step": self.best_step, "validation": dict(self.validation)}
