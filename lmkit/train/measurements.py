"""Figures of a trial: what was chosen for a recipe on this machine, and how fast its steps are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrialFacts:
    """What was chosen for a recipe here, and which other settings would compute something else.

    Args:
        parameters: ``trained`` and ``total``.
        other_micro_batches: tokens that would cut the steps otherwise.
        steps: of the whole run; None where only the time ends it.
    """

    device: str
    threads: int
    parameters: Mapping[str, int]
    precision: str
    native_bf16: bool
    micro_batch_tokens: int
    other_micro_batches: Sequence[int]
    packing: bool
    attention: str
    kernels: str
    workers: int | str
    examples: int
    examples_a_micro_batch: int
    steps: int | None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Some steps, one after the other.

    Args:
        slots: tokens with the padding.
        waited_seconds: for batches.
        micro_batch_tokens: what the memory allowed in the end.
    """

    seconds: float
    steps: int
    examples: int
    tokens: int
    slots: int
    waited_seconds: float
    micro_batch_tokens: int
    peak_memory_bytes: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def padding(self) -> float:
        return 1 - self.tokens / self.slots

    @property
    def data_wait(self) -> float:
        """Return the share of the time that was spent waiting for batches."""
        return self.waited_seconds / self.seconds


def sum_turns(turns: Sequence[Turn]) -> Turn:
    """Return all turns as one."""
    return Turn(
        seconds=sum(turn.seconds for turn in turns),
        steps=sum(turn.steps for turn in turns),
        examples=sum(turn.examples for turn in turns),
        tokens=sum(turn.tokens for turn in turns),
        slots=sum(turn.slots for turn in turns),
        waited_seconds=sum(turn.waited_seconds for turn in turns),
        micro_batch_tokens=turns[-1].micro_batch_tokens,
        peak_memory_bytes=max(turn.peak_memory_bytes for turn in turns),
    )
