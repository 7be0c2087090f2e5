"""The small parts of a session, each by itself."""

from __future__ import annotations

import time
import types
from typing import Any

import pytest

from lmkit.train import progress as clocks
from lmkit.train.progress import Best, Clock, Progress
from lmkit.train.schedule import Schedule


def schedule_of(**options: Any) -> Schedule:
    return Schedule(**{"total": 10, "log_every": 4, "eval_every": 3, "metric": "loss"} | options)


def test_a_run_ends_at_its_last_step_or_when_the_time_is_gone() -> None:
    schedule = schedule_of()
    assert [step for step in range(1, 11) if schedule.ends(step)] == [10]
    assert not schedule.ends(3, share=0.99)
    assert schedule.ends(3, share=1.0)


def test_an_evaluation_comes_at_its_interval_and_at_the_end() -> None:
    assert [step for step in range(1, 11) if schedule_of().evaluates(step)] == [3, 6, 9, 10]
    assert schedule_of().evaluates(4, last=True)
    assert not schedule_of(metric=None).evaluates(3, last=True)


def test_checkpoints_come_at_their_interval_and_where_they_are_averaged_with_evaluations() -> None:
    def steps(**options: Any) -> list[int]:
        schedule = schedule_of(**options)
        return [step for step in range(1, 11) if schedule.saves(step)]

    assert steps() == []
    assert steps(save_every=5) == [5, 10]
    assert steps(save_every=5, saves_evaluated=True) == [3, 5, 6, 9, 10]


def test_the_best_is_noted_and_patience_counts_what_follows() -> None:
    progress = Progress()
    best = Best(progress, metric="loss", patience=2)
    noted = []
    for step, value in enumerate([3.0, 2.0, 2.5, 2.0], start=1):
        progress.step = step
        noted.append(best.note(value))
    assert noted == [True, True, False, False]
    assert (progress.best_step, progress.best_value, progress.evaluated_step) == (2, 2.0, 4)
    assert best.is_out_of_patience


def test_where_the_best_checkpoint_is_lost_the_one_before_is_the_best() -> None:
    progress = Progress()
    best = Best(progress, metric="accuracy")
    for step, value in ((1, 0.5), (2, 0.9)):
        progress.step = step
        best.note(value)
    assert not best.is_lost({1})
    assert best.is_lost({2})
    best.fall_back()
    assert (progress.best_step, progress.best_value) == (1, 0.5)


def test_the_clock_counts_the_parts_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    clock = types.SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr(clocks, "time", clock)
    limited, free = Clock(earlier=20.0, limit=60.0), Clock(earlier=20.0)
    now = 110.0
    assert (limited.seconds(), limited.left(), limited.share_done()) == (30.0, 40.0, 0.5)
    assert (free.left(), free.share_done(), free.was_over) == (None, None, False)
    now = 1000.0
    assert limited.share_done() == 1.0
    assert not limited.was_over  # when this part began there was time left
    assert Clock(earlier=60.0, limit=60.0).was_over
    assert time.perf_counter() != now
