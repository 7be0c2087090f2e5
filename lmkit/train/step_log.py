"""The lines of log.jsonl about steps: sums over the steps since the line before."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from lmkit.data.plan import Plan
from lmkit.records import finite
from lmkit.train.loop import Step


@dataclass
class Tally:
    """Sums over the steps since the last line of the log.

    A checkpoint keeps it, so that the next line of a resumed run covers the same steps as the uninterrupted run's.

    Args:
        loss: summed over the labels, in nats; a tensor on the device once a step is in it.
        waited: seconds for data, of the first rank. seconds: of the steps of earlier processes.
    """

    loss: Any = 0.0
    items: int = 0
    tokens: int = 0
    slots: int = 0
    skipped: int = 0
    waited: float = 0.0
    seconds: float = 0.0

    def add(self, step: Step) -> None:
        self.loss = self.loss + step.loss * step.items
        self.items += step.items
        self.tokens += step.tokens
        self.slots += step.slots
        self.skipped += step.is_spike
        self.waited += step.waited_seconds


class StepLog:
    """A maker of log lines, each of the steps since the line before.

    Args:
        since_line: the tally of a checkpoint.
        with_skipped: lines count the steps that were left out for a spike.
    """

    def __init__(self, plan: Plan, since_line: dict[str, Any], *, with_skipped: bool = False):
        self.plan, self.with_skipped = plan, with_skipped
        self.tally = Tally(**since_line)
        self.begin()

    def begin(self) -> None:
        """Start the clock of the next line."""
        self._logged_at = time.perf_counter() - self.tally.seconds

    def add(self, step: Step) -> None:
        self.tally.add(step)

    def line(self, last: Step) -> dict[str, Any]:
        """Return the line of the steps up to ``last``, and begin the next one."""
        now = time.perf_counter()
        line = log_line(last, self.tally, self.plan, seconds=max(now - self._logged_at, 1e-9))
        if self.with_skipped:
            line["skipped"] = self.tally.skipped
        self.tally, self._logged_at = Tally(), now
        return line

    def leave_out(self, seconds: float) -> None:
        """Leave out time that was not for steps."""
        self._logged_at += seconds

    def state(self) -> dict[str, Any]:
        """Return the tally as plain numbers, for a checkpoint."""
        seconds = time.perf_counter() - self._logged_at
        return vars(self.tally) | {"loss": float(self.tally.loss), "seconds": seconds}


def log_line(last: Step, tally: Tally, plan: Plan, *, seconds: float) -> dict[str, Any]:
    """Return the line of the steps in ``tally``, which took so many seconds; ``data_wait`` is the first rank's share."""
    # no label counted: a loss of 0 would say that all was predicted
    loss = float(tally.loss) / tally.items if tally.items else None
    return {
        "step": last.number,
        "epoch": epoch_of(plan, last.number),
        "loss": loss,
        "learning_rate": last.learning_rate,
        "grad_norm": finite(last.grad_norm.item()),
        "tokens": tally.tokens,
        "tokens_per_second": round(tally.tokens / seconds, 1),
        "padding": round(1 - tally.tokens / max(tally.slots, 1), 4),
        "data_wait": round(tally.waited / seconds, 4),
    }


def epoch_of(plan: Plan, step: int) -> float:
    return round(step / plan.steps_per_epoch, 4)


def postfix(line: dict[str, Any]) -> str:
    """Return what the progress bar shows of a line."""
    loss = math.nan if line["loss"] is None else line["loss"]
    return f"loss {loss:.3f}, {line['tokens_per_second']:.0f} tokens/s"
