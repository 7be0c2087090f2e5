"""Which way a metric is better: losses and errors are better when they are lower."""

from __future__ import annotations

import math

LOWER_IS_BETTER = frozenset(
    [
        "loss", "perplexity", "pseudo_perplexity", "bits_per_byte", "ter", "mse", "empty", "truncated",
        # modules of the evaluate library
        "wer", "cer", "mae", "rmse", "mape", "smape", "mase", "brier_score",
    ]
)  # fmt: skip


def lower_is_better(metric: str) -> bool:
    """Tell if less is better; of what a module of ``eval.metrics`` computes (``module.name``) by its own name."""
    return metric.rpartition(".")[2] in LOWER_IS_BETTER


def is_better(metric: str, value: float, than: float | None) -> bool:
    """Tell if a value is better than another, or than none; nan never is."""
    if math.isnan(value):
        return False
    if than is None:
        return True
    return value < than if lower_is_better(metric) else value > than
