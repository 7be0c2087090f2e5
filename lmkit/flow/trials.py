"""Measure steps of a recipe in a process of its own, as often as is asked."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from lmkit import console
from lmkit.errors import LmkitError, TrainingStopped
from lmkit.flow.case import Case
from lmkit.train.measurements import TrialFacts, Turn

PEAK_SECONDS = 0.3
ENDS_SECONDS = 5  # before a process is ended, in the middle of a step if need be
READ_AHEAD = 2  # steps that torch's loader lets each worker prepare


class TrialProcess:
    """A trial in a process of its own.

    Peak memory is a process's, and threads, precision and what torch caches are set once in it. At most two are
    there at a time, the recipe's and one setting's, and one of them always waits.
    """

    def __init__(self, case: Case):
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(end, case))
        self._process.start()
        end.close()
        self._is_slow = False
        self.facts: TrialFacts = self._answer()

    def turn(self, seconds: float) -> Turn:
        """Run steps for about so long, after one that warms up and those that loader workers had ready.

        Where a step takes as long as the turn, it needs no warming up.
        """
        workers = self.facts.workers
        settle = (
            0 if self._is_slow else 1 + READ_AHEAD * (workers if isinstance(workers, int) else 0)
        )
        turn = self.first_turn(seconds, settle=settle)
        self._is_slow = turn.steps == 1
        return turn

    def first_turn(self, seconds: float, *, settle: int = 0) -> Turn:
        """Run steps for about so long; ``settle``: steps before them that do not count."""
        turn: Turn = self._call("turn", seconds, settle=settle)
        return turn

    def matmul_peak(self) -> float:
        """Measure the FLOP/s that matrix products reach."""
        peak: float = self._call("matmul_peak", PEAK_SECONDS)
        return peak

    def flops_per_token(self) -> float | None:
        """Count the FLOPs of a token; None: they do not fit into the memory."""
        flops: float | None = self._call("flops_per_token")
        return flops

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Return what a method of the trial returns; raise here what it raises."""
        self._pipe.send((method, arguments, options))
        return self._answer()

    def _answer(self) -> Any:
        try:
            is_well, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise TrainingStopped(
                f"the process that measured ended with status {self._process.exitcode}: often the memory is full"
            ) from None
        if not is_well:
            raise value
        return value

    def end(self) -> None:
        self._pipe.close()  # which ends it, and its loader workers
        self._process.join(ENDS_SECONDS)
        self._process.terminate()
        self._process.join()


@contextmanager
def trial_process(case: Case) -> Iterator[TrialProcess]:
    """Start a process for a trial, and end it."""
    process = TrialProcess(case)
    try:
        yield process
    finally:
        process.end()


def _serve(pipe: Connection, case: Case) -> None:
    """Answer what is asked over the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command that started this ends it
    os.dup2(2, 1)  # stdout has room for the command's one JSON object alone
    console.configure(as_json=True, quiet=True)
    try:
        from lmkit.train.trial import Trial

        trial = Trial(case.recipe, case.splits, case.source)
        pipe.send((True, trial.facts()))
        while True:
            method, arguments, options = pipe.recv()
            pipe.send((True, getattr(trial, method)(*arguments, **options)))
    except EOFError:
        return
    except (LmkitError, TrainingStopped) as error:
        pipe.send((False, type(error)(str(error))))
