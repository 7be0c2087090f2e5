"""Steps that end a run or are left out: losses that are not finite, and gradient spikes."""

from __future__ import annotations

import json
import math
from pathlib import Path

from lmkit import console
from lmkit.errors import TrainingStopped
from lmkit.run import Run, write_text
from lmkit.train.checkpoint import checkpoint_steps
from lmkit.train.device import choose_precision
from lmkit.train.loop import Step
from lmkit.train.setup import Setup
from lmkit.train.writer import Writer


class Guard:
    """A guard that stops a run at the first step whose numbers are not fit to go on with."""

    def __init__(self, setup: Setup, run: Run, writer: Writer):
        self.setup, self.run, self.writer = setup, run, writer
        self._unchecked: list[Step] = []

    def add(self, step: Step) -> None:
        """Note a step; a spike is said, or with ``train.on_spike: stop`` ends the run (TrainingStopped)."""
        self._unchecked.append(step)
        if step.is_spike:
            self._say_spike(step)

    def check(self) -> None:
        """Stop at the first step since the last check whose loss is not finite, and say which rows it was made of.

        With fp16 a gradient that is not finite belongs to the search for the loss scale: that step is skipped.
        This waits for the device.

        Raises:
            TrainingStopped: a loss, or a gradient, is not finite.
        """
        steps, self._unchecked = self._unchecked, []
        precision = choose_precision(self.setup.recipe.hardware)
        also = "" if precision == "fp32" else ", or hardware.precision=fp32,"
        for step in steps:
            loss, norm = step.loss.item(), step.grad_norm.item()
            if math.isfinite(loss) and (precision == "fp16" or math.isfinite(norm)):
                continue
            count, listing = self._write_rows(step.number, "not-finite")
            raise TrainingStopped(
                f"step {step.number}: the loss is not finite (loss {loss}, gradient norm {norm}); {self._last_good()}\n"
                f"  the {count} rows of that step are in {listing}; a lower train.learning_rate{also} often helps"
            )

    def _say_spike(self, step: Step) -> None:
        spikes = self.setup.spikes
        assert spikes is not None
        norm = step.grad_norm.item()
        times = norm / max(spikes.median, 1e-30)
        problem = f"step {step.number}: the gradient norm {norm:.4g} is {times:.0f} times the median of the last steps"
        if self.setup.recipe.train.on_spike == "skip":
            console.warn(f"{problem}; the step is left out")
            return
        count, listing = self._write_rows(step.number, "spike")
        raise TrainingStopped(
            f"{problem} (loss {step.loss.item():.4g}); {self._last_good()}\n"
            f"  the {count} rows of that step are in {listing}; --resume with train.on_spike=skip leaves the step out"
        )

    def _write_rows(self, number: int, why: str) -> tuple[int, Path]:
        """Write the rows of a step into the run directory; return how many, and where."""
        encoded = self.setup.encoded
        examples = self.setup.plan.examples(number - 1)
        numbers = {piece["row"] for example in examples for piece in encoded.example(int(example))}
        rows = sorted(numbers)
        content = [{"place": encoded.rows.place(row), **encoded.rows[row]} for row in rows]
        listing = self.run.path / f"{why}-step-{number}.jsonl"
        if console.is_first_process():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in content]
            write_text(listing, "".join(lines))
        return len(rows), listing

    def _last_good(self) -> str:
        self.writer.wait()
        steps = checkpoint_steps(self.run)
        if not steps:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is step {steps[-1]}"
