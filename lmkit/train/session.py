"""A run's steps, and around them logging, evaluating, saving and stopping."""

from __future__ import annotations

import signal
import time
from types import TracebackType
from typing import Any

from lmkit import console
from lmkit.errors import TrainingStopped
from lmkit.evaluation.evaluate import validate
from lmkit.evaluation.forward import Forward
from lmkit.records import finite
from lmkit.run import Run
from lmkit.train.checkpoint import (
    averaged,
    checkpoint_steps,
    drop_old,
    drop_unfinished,
    set_aside_after,
)
from lmkit.train.guard import Guard
from lmkit.train.loop import Step, train_steps
from lmkit.train.optim import group_values
from lmkit.train.plans import UNLIMITED
from lmkit.train.progress import Best, Clock, Progress
from lmkit.train.schedule import Schedule
from lmkit.train.setup import Setup, decide_compile
from lmkit.train.signals import Interrupted, signals
from lmkit.train.step_log import StepLog, epoch_of, postfix
from lmkit.train.writer import Writer


class Checkpoints:
    """Checkpoints of a run: when one is due, where it is written, which old ones go."""

    def __init__(self, setup: Setup, run: Run, schedule: Schedule):
        self.setup, self.run, self.schedule = setup, run, schedule
        self.writer = Writer(run, setup.parallelism)
        self._saved_at = time.perf_counter()

    def __enter__(self) -> Checkpoints:
        self.writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.writer.__exit__(kind, error, trace)

    def clean(self, step: int) -> None:
        """Remove what a killed process left half-written, and set damaged checkpoints after ``step`` aside."""
        if self.setup.parallelism.is_first:
            drop_unfinished(self.run)
            set_aside_after(self.run, step)

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint follows the step: by its number, or by the first rank's clock."""
        if self.schedule.saves(step):
            return True
        if self.schedule.save_seconds is None:
            return False
        is_late = time.perf_counter() - self._saved_at > self.schedule.save_seconds
        return self.setup.parallelism.first_rank_says(is_late)

    def settle(self, best: Best) -> None:
        """Wait for the checkpoint that is being written; if the best step's found no room, fall back."""
        self.writer.wait()
        if self.setup.parallelism.first_rank_says(best.is_lost(self.writer.lost)):
            best.fall_back()

    def save(self, progress: Progress, best: Best) -> None:
        """Write a checkpoint of the present step, beside training."""
        self.settle(best)
        setup, best_step = self.setup, progress.best_step
        if setup.parallelism.saves:
            with setup.averaged_weights():
                self.writer.save(
                    progress.step,
                    setup.model,
                    setup.optimizer,
                    progress.to_state(),
                    lambda: self._drop_old(best_step),
                )
        self._saved_at = time.perf_counter()

    def finish(self, progress: Progress, best: Best) -> None:
        """Return when every rank may read the checkpoints.

        Raises:
            TrainingStopped: the last one found no room.
        """
        self.settle(best)
        is_lost = progress.step in self.writer.lost
        if self.setup.parallelism.first_rank_says(is_lost):
            raise TrainingStopped(
                f"{self.run.checkpoints}: the disk is full, the last checkpoint (step {progress.step}) is not saved\n"
                "  make room there; the same command with --resume goes on from the checkpoint before"
            )
        self.setup.parallelism.wait()

    def _drop_old(self, best_step: int | None) -> None:
        recipe = self.setup.recipe
        also = self._to_average(best_step) if recipe.train.average_checkpoints else ()
        drop_old(self.run, keep=recipe.hardware.keep_checkpoints, best=best_step, also=also)

    def _to_average(self, best_step: int | None) -> set[int]:
        """Return the checkpoints that the mean may still need: if the best one stays it, and if a later one becomes it."""
        steps, number = checkpoint_steps(self.run), self.setup.recipe.train.average_checkpoints
        every, total = self.schedule.eval_every, self.schedule.total
        needed: set[int] = set()
        for end in (best_step, total):
            needed.update(averaged(steps, number, every=every, last=total, best=end))
        return needed


class Session:
    """Training of a run, from where ``progress`` stands to its end.

    Args:
        metric: what validation chooses the model by; None: nothing is evaluated.
    """

    def __init__(self, setup: Setup, run: Run, progress: Progress, *, metric: str | None):
        recipe = setup.recipe
        train = recipe.train
        self.setup, self.run_directory, self.progress = setup, run, progress
        self.schedule = Schedule.of(recipe, setup.plan, total=setup.total, metric=metric)
        limit = train.max_minutes * 60 if train.max_minutes else None
        self.clock = Clock(earlier=progress.seconds, limit=limit)
        self.best = Best(progress, metric=metric, patience=train.early_stopping)
        self.checkpoints = Checkpoints(setup, run, self.schedule)
        self.guard = Guard(setup, run, self.checkpoints.writer)
        self.log = StepLog(setup.plan, progress.since_line, with_skipped=setup.spikes is not None)

    def run(self) -> None:
        """Train to the last step, to the end of the time, or until patience is over.

        Raises:
            Interrupted: a signal came; a checkpoint is written.
            TrainingStopped: the numbers, the memory or the disk do not allow more.
        """
        self.checkpoints.clean(self.progress.step)
        if self._is_over():
            return
        decide_compile(self.setup, first=self.progress.step, seconds=self.clock.left())
        with signals() as received, self.checkpoints, self._bar() as bar:
            self.log.begin()
            for step in train_steps(
                self.setup,
                first=self.progress.step,
                share_done=self.clock.share_done,
                should_stop=lambda: bool(received),
            ):
                self._note(step)
                is_end = self.schedule.ends(step.number, step.share)
                last = is_end or step.interrupted
                is_due = self.schedule.evaluates(step.number, last=last)
                evaluates = is_due and not step.interrupted
                saves = self.checkpoints.is_due(step.number) or last
                if last or evaluates or saves or self._is_checked(step):
                    self.guard.check()
                self.progress.seconds = self.clock.seconds()
                if is_end or self.schedule.logs(step.number):
                    bar.set_postfix_str(self._write_line(step), refresh=False)
                bar.update()
                if evaluates:
                    saves = self._evaluate() or saves
                    last = self._has_lost_patience() or last
                if saves or last:
                    self._save()
                if last:
                    self.checkpoints.finish(self.progress, self.best)
                if step.interrupted:
                    raise Interrupted(128 + (received[0] if received else signal.SIGINT))
                if last:
                    return

    def _is_over(self) -> bool:
        """Return whether there is nothing left to train; validate first where a signal came before it."""
        progress, was_over = self.progress, self.clock.was_over
        is_missing = progress.step > progress.evaluated_step
        if is_missing and self.schedule.evaluates(progress.step, last=was_over):
            self._evaluate()
        return was_over or self.best.is_out_of_patience

    def _bar(self) -> Any:
        total = self.setup.total if self.setup.total < UNLIMITED else None
        return console.progress_bar(
            total=total, what=self.setup.task.name, initial=self.progress.step
        )

    def _note(self, step: Step) -> None:
        self.log.add(step)
        self.progress.step = step.number
        self.progress.tokens += step.tokens
        if self.setup.spikes is not None:
            self.progress.norms = self.setup.spikes.norms
            self.progress.skipped += step.is_spike
        self.guard.add(step)

    def _is_checked(self, step: Step) -> bool:
        """Return whether the loss of a step is looked at at once: a GPU would have to be waited for."""
        return self.schedule.logs(step.number) or self.setup.parallelism.device.type == "cpu"

    def _write_line(self, step: Step) -> str:
        """Write a line of the log; return what the progress bar shows of it."""
        line = self.log.line(step)
        parallelism = self.setup.parallelism
        if parallelism.is_first:
            seconds = round(self.progress.seconds, 3)
            self.run_directory.append_log(line | {"seconds": seconds})
        values = {k: v for k, v in line.items() if k != "step" and v is not None}
        parallelism.track(values, step=step.number)
        return postfix(line)

    def _evaluate(self) -> bool:
        """Validate; return whether this step is the best so far."""
        begun = time.perf_counter()
        setup, progress, metric = self.setup, self.progress, self.schedule.metric
        assert metric is not None
        self.checkpoints.settle(self.best)
        with (
            setup.averaged_weights(),
            setup.parallelism.whole(setup.model),
            setup.computation.for_evaluation(),
        ):
            forward = Forward(
                setup.task,
                setup.model,
                setup.parallelism,
                2 * setup.batches.budget,
            )
            value = validate(forward, setup.prepared.encoded["validation"], metric=metric)
        setup.model.train()
        is_best = self.best.note(value)
        key = f"validation_{metric}"
        if setup.parallelism.is_first:
            epoch = epoch_of(setup.plan, progress.step)
            line = {"step": progress.step, "epoch": epoch, key: finite(value)}
            self.run_directory.append_log(line)
        setup.parallelism.track({key: value}, step=progress.step)
        if console.is_verbose() or is_best:
            remark = " (best so far)" if is_best else ""
            console.say(f"step {progress.step}: validation {metric} {value:.4f}{remark}")
        self.log.leave_out(time.perf_counter() - begun)
        return is_best

    def _has_lost_patience(self) -> bool:
        if not self.best.is_out_of_patience:
            return False
        console.say(
            f"step {self.progress.step}: no improvement in {self.best.patience} evaluations, stopping"
        )
        return True

    def _save(self) -> None:
        progress, setup = self.progress, self.setup
        progress.seconds = self.clock.seconds()
        progress.decisions = setup.decisions_now()
        progress.groups = group_values(setup.optimizer)
        progress.since_line = self.log.state()
        self.checkpoints.save(progress, self.best)
