"""Which way a metric is better: the problems say it of theirs, this file of those of other libraries."""

from __future__ import annotations

import math

from lmkit.tasks.registry import problems

# modules of the evaluate library
OF_MODULES = frozenset({"wer", "cer", "mae", "rmse", "mape", "smape", "mase", "brier_score"})


def lower_is_better(metric: str) -> bool:
    """Tell if less is better; of what a module of ``eval.metrics`` computes (``module.name``) by its own name."""
    name = metric.rpartition(".")[2]
    if name in OF_MODULES:
        return True
    measures = (measure for problem in problems() for measure in problem.measures)
    return any(measure.name == name and measure.less_is_better for measure in measures)


def is_better(metric: str, value: float, than: float | None) -> bool:
    """Tell if a value is better than another, or than none; nan never is."""
    if math.isnan(value):
        return False
    if than is None:
        return True
    return value < than if lower_is_better(metric) else value > than
