"""What a training step costs beyond forward, backward and the optimizer's update.

    python tests/bench/overhead.py [--rounds 3] [--steps 8] [--checkpoint-minutes 10]

MLM of a BERT of 20 M parameters on the text that ships, with the default hardware, logging and clipping, on this machine.
Each round takes the same steps twice: bare, with batches that were made beforehand, a pass forwards, one backwards and the
update, and nothing else; and through ``Session.run``, which everything that trains goes through: making batches (in this
process, not in workers), clipping, counting, the checks that the loss is finite, the log. The first step of either warms up.
The overhead is what the second took longer; beside it stands where the time between the parts of a step went, by the clock.
A checkpoint's share is the time that training stood still for one, and all of the time that the thread beside it wrote,
over the minutes from one to the next.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lmkit.data.splits import load_splits
from lmkit.recipe import load_recipe
from lmkit.run import Run
from lmkit.tasks.registry import problem
from lmkit.train import session
from lmkit.train.checkpoint import snapshot, write_checkpoint
from lmkit.train.prepare import prepare
from lmkit.train.setup import decide, set_up

RECIPE: dict[str, Any] = {
    "task": "mlm",
    "model": {"preset": "bert-small"},
    "tokenizer": {"train": {"algorithm": "wordpiece", "vocab_size": 16000}},
    "data": {"train": "sample:mobydick_en/train.txt.gz", "max_length": 128},
    "train": {"batch_size": 16, "learning_rate": 1e-4, "epochs": 1},
    "hardware": {"checkpoint_every": None, "workers": 0},
}


class Subject:
    """The recipe's model with its optimizer, and its data."""

    def __init__(self, steps: int):
        self.recipe = load_recipe(RECIPE)
        self.prepared = prepare(
            self.recipe, load_splits(self.recipe, problem("mlm"), wanted=("train",)), None
        )
        self.setup = set_up(self.recipe, self.prepared)
        decide(self.setup)
        self.setup.total = steps
        self.task, self.accelerator = self.setup.task, self.setup.parallelism.accelerator
        self.parameters = self.setup.parameter_counts[1]
        self.packing, self.plan = self.setup.computation.packing, self.setup.plan
        self.model, self.optimizer = self.setup.model, self.setup.optimizer
        batches = self.setup.batches
        self.steps, self.micro = steps, [batches[step] for step in range(steps)]
        self.tokens = statistics.mean(sum(batch.tokens for batch in micro) for micro in self.micro)

    def bare(self) -> float:
        """Seconds of a step: forward, backward, update."""
        device, self_packing = self.accelerator.device, self.packing
        times = []
        self.model.train()
        for micro in self.micro:
            items = sum(batch.items for batch in micro)
            ready = [batch.to(device) for batch in micro]
            ready = [self_packing.apply(batch) if self_packing else batch for batch in ready]
            self._wait()
            begun = time.perf_counter()
            for batch in ready:
                self.accelerator.backward(self.task.loss(self.model, batch) / items)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self._wait()
            times.append(time.perf_counter() - begun)
        return statistics.mean(times[1:])

    def loop(self, folder: Path) -> tuple[float, dict[str, float]]:
        """Seconds of a step through the loop, and of its parts."""
        run = Run(folder)
        folder.mkdir()
        spent: Counter[str] = Counter()
        parts = [
            ("forward", self.task, "loss"),
            ("backward", self.accelerator, "backward"),
            ("update", self.optimizer, "step"),
            ("clipping", self.accelerator, "clip_grad_norm_"),
            ("making batches", self.task, "collate"),
            ("the log", run, "append_log"),
        ]
        ends: list[float] = []
        steps = session.train_steps

        def noted(*arguments: Any, **options: Any) -> Any:
            for step in steps(*arguments, **options):
                self._wait()
                ends.append(time.perf_counter())
                if len(ends) == 1:
                    spent.clear()  # the first one warmed up
                if len(ends) == self.steps:
                    whole.update(spent)
                yield step

        whole: dict[str, float] = {}
        for name, owner, method in parts:
            setattr(owner, method, _timed(getattr(owner, method), name, spent))
        session.train_steps = noted
        try:
            session.Session(self.setup, run, session.Progress(), metric=None).run()
        finally:
            session.train_steps = steps
            for _, owner, method in parts:
                delattr(owner, method)
        number = self.steps - 1
        step = (ends[-1] - ends[0]) / number
        found = {name: seconds / number for name, seconds in whole.items()}
        return step, found | {"the rest": step - sum(found.values())}

    def checkpoint(self, run: Run) -> tuple[float, float]:
        """Seconds that training stands still, and that writing takes beside it."""
        begun = time.perf_counter()
        weights, moments = snapshot(self.model, self.optimizer, self.setup.parallelism, copy=True)
        copied = time.perf_counter()
        write_checkpoint(run, 1, weights, moments, {})
        return copied - begun, time.perf_counter() - copied

    def _wait(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()


def _timed(function: Callable[..., Any], name: str, spent: Counter[str]) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[name] += time.perf_counter() - begun  # type: ignore[assignment]

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of a round, on either side")
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0)
    options = parser.parse_args()
    subject = Subject(options.steps)
    print(
        f"{subject.parameters / 1e6:.1f} M parameters, {subject.tokens:.0f} tokens a step, {subject.accelerator.device}, "
        f"{torch.get_num_threads()} threads, {subject.accelerator.mixed_precision}"
    )
    shares, outside = [], []
    with tempfile.TemporaryDirectory(prefix="lmkit-overhead-") as folder:
        for number in range(options.rounds):
            bare = subject.bare()
            step, parts = subject.loop(Path(folder) / str(number))
            shares.append(step / bare - 1)
            outside.append(
                1 - sum(parts[name] for name in ("forward", "backward", "update")) / step
            )
            told = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in parts.items())
            print(
                f"round {number + 1}: bare {bare:.3f} s, loop {step:.3f} s, {shares[-1]:+.2%}; ms of a step: {told}",
                flush=True,
            )
        still, beside = subject.checkpoint(Run(Path(folder) / "checkpoint"))
    for name, values in (("longer than bare", shares), ("by the clock", outside)):
        print(
            f"overhead, {name}: {statistics.median(values):.2%} ({min(values):.2%} ... {max(values):.2%})"
        )
    share = (still + beside) / (60 * options.checkpoint_minutes)
    print(
        f"a checkpoint: {still:.2f} s copied, {beside:.2f} s written beside; every {options.checkpoint_minutes:g} min: {share:.2%}"
    )


if __name__ == "__main__":
    main()
