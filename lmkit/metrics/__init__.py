"""Metrics as functions of sums of per-example sufficient statistics.

Every ``*_statistics`` function turns gold and predictions into a :class:`Statistics`: one row of numbers per example,
and how to read metrics from a sum of rows. The corpus value is the metric of the sum of all rows; a bootstrap resample
is a weighted sum of them, so nothing is ever scored twice.

>>> statistics = classification_statistics(["a", "b", "b"], ["a", "b", "a"], ["a", "b"])
>>> round(statistics.values()["accuracy"], 3)
0.667
"""

from __future__ import annotations

from lmkit.metrics.classification import classification_statistics
from lmkit.metrics.intervals import bootstrap_intervals, bootstrap_values
from lmkit.metrics.language_model import language_model_statistics
from lmkit.metrics.statistics import Statistics
from lmkit.metrics.tagging import tagging_statistics
from lmkit.metrics.translation import translation_statistics

__all__ = [
    "Statistics",
    "bootstrap_intervals",
    "bootstrap_values",
    "classification_statistics",
    "language_model_statistics",
    "tagging_statistics",
    "translation_statistics",
]
