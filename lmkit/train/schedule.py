"""When what happens: the learning rate of a step, and the steps at which a run logs, evaluates, saves and ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lmkit.data.plan import Plan
from lmkit.recipe.schema import Recipe, Train
from lmkit.train.plans import checkpoint_interval, evaluation_interval


@dataclass(frozen=True)
class Schedule:
    """The steps at which a run logs, evaluates, saves and ends. Steps are counted from 1.

    The rate of a step is not part of it: see ``learning_rate`` below.

    Args:
        total: the number of steps of the run.
        log_every, eval_every: the steps between two lines of the log, and between two evaluations.
        save_every, save_seconds: the steps or seconds between two checkpoints; None: it is not used.
        metric: the metric that chooses the checkpoint; None: nothing is evaluated.
        saves_evaluated: save a checkpoint at each evaluation (``train.average_checkpoints``).
    """

    total: int
    log_every: int
    eval_every: int
    save_every: int | None = None
    save_seconds: float | None = None
    metric: str | None = None
    saves_evaluated: bool = False

    @classmethod
    def of(cls, recipe: Recipe, plan: Plan, *, total: int, metric: str | None) -> Schedule:
        steps, seconds = checkpoint_interval(recipe)
        return cls(
            total=total,
            log_every=recipe.logging.every,
            eval_every=evaluation_interval(recipe, plan),
            save_every=steps,
            save_seconds=seconds,
            metric=metric,
            saves_evaluated=recipe.train.average_checkpoints is not None,
        )

    def ends(self, step: int, share: float | None = None) -> bool:
        """Return whether a step is the last one.

        Args:
            share: of ``train.max_minutes`` that was gone when it began; None without.
        """
        return step == self.total or (share is not None and share >= 1)

    def logs(self, step: int) -> bool:
        return step % self.log_every == 0

    def evaluates(self, step: int, *, last: bool = False) -> bool:
        is_due = step % self.eval_every == 0 or step == self.total or last
        return self.metric is not None and is_due

    def saves(self, step: int) -> bool:
        if self.saves_evaluated and step % self.eval_every == 0:
            return True
        return self.save_every is not None and step % self.save_every == 0


def learning_rate(train: Train, *, step: int, total: int, share: float | None = None) -> float:
    """Return the learning rate of a step. Processes and resuming do not change it.

    Args:
        step: the step, counted from 0.
        total: the number of steps of the whole run.
        share: the part of ``train.max_minutes`` that has passed, between 0 and 1. The schedule then
            follows the time and not ``step / total``. None: there is no time limit.

    >>> round(learning_rate(Train(learning_rate=1.0, warmup=2), step=0, total=10), 3)
    0.5
    """
    if train.warmup < 1:
        warmup_share = train.warmup
        done = share if share is not None else step / total
        risen = (
            1.0
            if done >= warmup_share
            else (done + 1 / max(total, 1)) / warmup_share
            if share is None
            else done / warmup_share
        )
    else:
        warmup_share = min(1.0, train.warmup / max(total, 1)) if share is None else 0.0
        risen = (step + 1) / train.warmup
        done = share if share is not None else step / total
    if risen < 1:
        return train.learning_rate * max(risen, 1e-3)
    left = min(1.0, max(0.0, (1 - done) / (1 - warmup_share) if warmup_share < 1 else 1.0))
    factor = {
        "constant": 1.0,
        "linear": left,
        "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))),
        "wsd": min(1.0, left / 0.2),  # warm-up, stable, decay over the last fifth (Hu et al. 2024)
    }[train.schedule]
    return train.learning_rate * factor
