"""Ctrl-C and SIGTERM while training."""

from __future__ import annotations

import signal

import pytest

from lmkit.train.signals import signals


def test_the_first_signal_is_noted_and_a_second_one_leaves_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job has it ignored
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    received: list[int] = []

    def train() -> None:
        nonlocal received
        with signals() as received:
            signal.raise_signal(signal.SIGTERM)
            assert "once more to leave at once" in capsys.readouterr().err
            assert [
                signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
            ] == before
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert received == [signal.SIGTERM]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
