"""Ctrl-C and SIGTERM: the step in hand ends in a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmkit import console


class Interrupted(Exception):
    """A signal ended the run after a checkpoint; carries the exit status (130 or 143)."""

    def __init__(self, status: int):
        super().__init__(f"interrupted (exit status {status})")
        self.status = status


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the step in hand ends in a checkpoint; a second one acts at once."""
    received: list[int] = []
    try:
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, frame: Any) -> None:
            received.append(number)
            console.warn("stopping after this step with a checkpoint; once more to leave at once")
            for handled, handler in before.items():
                signal.signal(handled, handler)

        for number in before:
            signal.signal(number, note)
    except ValueError:  # not the main thread: signals are its business
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
