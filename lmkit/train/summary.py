"""What a training run comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmkit.records import Metrics


@dataclass(frozen=True)
class TrainingSummary:
    """A finished training run.

    Args:
        run: its directory.
        selected_by: the validation metric that chose the model; None: the last step is kept.
        validation: None without validation rows, and on all ranks but the first.
        processes: how many were started for it; None: it was trained in this one.
    """

    run: str
    task: str
    steps: int
    tokens: int
    seconds: float
    best_step: int | None
    selected_by: str | None = None
    validation: Metrics | None = None
    processes: int | None = None

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {"run": self.run, "task": self.task}
        if self.processes is not None:
            values["processes"] = self.processes
        values |= {"steps": self.steps, "tokens": self.tokens, "seconds": self.seconds}
        if self.processes is None:
            values["selected_by"] = self.selected_by
        validation = {} if self.validation is None else self.validation.to_json()
        return values | {"best_step": self.best_step, "validation": validation}
