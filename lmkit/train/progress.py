"""Where a run stands: the numbers that a checkpoint keeps beside weights and moments."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

from lmkit.tasks.direction import is_better
from lmkit.train.decisions import Decision, decisions_of


@dataclass
class Progress:
    """A place in a run.

    Args:
        fingerprint: what must be the same for a resumed run to be the same run.
        decisions: by the recipe's key.
        groups: what the optimizer counts for each group.
        norms: of the last gradients, for ``train.on_spike``.
        skipped: steps left out for a spike.
        since_line: the tally of the steps that no line of the log covers yet.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_value: float | None = None
    without_improvement: int = 0
    evaluated_step: int = 0
    fingerprint: dict[str, Any] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)
    groups: list[dict[str, float]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: int = 0
    since_line: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """Read what ``to_state`` gave, also of a checkpoint of lmkit 0.1."""
        names = {field.name for field in fields(cls)} - {"decisions"}
        values = {name: state[name] for name in names if name in state}
        return cls(**values, decisions=decisions_of(state))

    def to_state(self) -> dict[str, Any]:
        decisions = [decision.to_json() for decision in self.decisions.values()]
        return vars(self) | {"decisions": decisions}


class Clock:
    """A clock of the time that a run has trained, over all its parts.

    Args:
        earlier: seconds of the parts before this one.
        limit: seconds that the run may take; None: any number.
    """

    def __init__(self, *, earlier: float = 0.0, limit: float | None = None):
        self.earlier, self.limit = earlier, limit
        self.begun = time.perf_counter()

    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.begun

    def left(self) -> float | None:
        """Return the seconds that were left at the start of this part; None: there is no limit."""
        return None if self.limit is None else self.limit - self.earlier

    @property
    def was_over(self) -> bool:
        """Return whether the parts before this one took all of the time."""
        return self.limit is not None and self.earlier >= self.limit

    def share_done(self) -> float | None:
        """Return the share of the limit that is gone; None: there is no limit."""
        return None if self.limit is None else min(1.0, self.seconds() / self.limit)


class Best:
    """A record of the best validation so far, and how many came after it.

    Args:
        progress: keeps the numbers.
        patience: evaluations without improvement that end the run; None: it goes on.
    """

    def __init__(self, progress: Progress, *, metric: str | None, patience: int | None = None):
        self.progress, self.metric, self.patience = progress, metric, patience
        self._second = progress.best_step, progress.best_value

    def note(self, value: float) -> bool:
        """Note the validation of the present step; return whether it is the best so far."""
        progress = self.progress
        assert self.metric is not None
        progress.evaluated_step = progress.step
        if not is_better(self.metric, value, progress.best_value):
            progress.without_improvement += 1
            return False
        self._second = progress.best_step, progress.best_value
        progress.best_step, progress.best_value = progress.step, value
        progress.without_improvement = 0
        return True

    def is_lost(self, steps: Collection[int]) -> bool:
        """Return whether the best step is one of these, whose checkpoints found no room."""
        return self.progress.best_step in steps

    def fall_back(self) -> None:
        """Take the one before the best, whose checkpoint is there."""
        self.progress.best_step, self.progress.best_value = self._second

    @property
    def is_out_of_patience(self) -> bool:
        return self.patience is not None and self.progress.without_improvement >= self.patience
