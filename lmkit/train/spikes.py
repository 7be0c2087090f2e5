"""Gradient spikes: a norm far above what the last steps had."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from lmkit.recipe.schema import Train

WINDOW = 100  # norms that the median is taken over
FEWEST = 10  # before so many, nothing is called a spike


class Spikes:
    """A judge of gradient norms by the median of the last ones.

    Args:
        norms: of the last steps, from a checkpoint.

    >>> spikes = Spikes(Train(on_spike="skip", spike_factor=5), [1.0] * 10)
    >>> spikes.judge(5.0), spikes.judge(5.1), spikes.judge(float("nan"))
    (False, True, False)
    """

    def __init__(self, train: Train, norms: Sequence[float]):
        self.factor, self.norms, self.median = train.spike_factor, list(norms), math.nan

    def judge(self, norm: float) -> bool:
        """Return whether this norm is a spike. A norm that is not finite is none: it ends the run."""
        self.median = statistics.median(self.norms) if self.norms else math.nan
        is_spike = (
            len(self.norms) >= FEWEST and math.isfinite(norm) and norm > self.factor * self.median
        )
        if math.isfinite(norm):  # a spike too: where large norms stay, they become the rule
            self.norms = [*self.norms, norm][
                -WINDOW:
            ]  # a new list: a checkpoint may still be writing the old one
        return is_spike
