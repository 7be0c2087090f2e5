"""Numbers of each example, and the metrics as functions of their sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sufficient statistics per example, and the metrics of any weighted sum of them.

    Args:
        counts: ``(examples, k)``, the sufficient statistics of each example; ``examples`` may be 0.
        metrics: sums ``(..., k)`` to values ``(...)`` by name, vectorised over the leading axes.
        by_label: sums ``(k,)`` to ``{label: {"precision", "recall", "f1", "support"}}``; None without labels.
        remake: computes the statistics of a choice of rows again. A metric needs it if the numbers of a row depend
            on the other rows, as ranks do.
        signature: the settings of the metric, so that others can compute the same (sacreBLEU has one); None: no settings.
    """

    counts: FloatArray
    metrics: Callable[[FloatArray], dict[str, FloatArray]]
    by_label: Callable[[FloatArray], dict[str, dict[str, float]]] | None = None
    signature: str | None = None
    remake: Callable[[NDArray[Any]], Statistics] | None = None

    @property
    def examples(self) -> int:
        return len(self.counts)

    def values(self) -> dict[str, float]:
        """Return the metrics of all examples together."""
        return {name: float(value) for name, value in self.metrics(self.counts.sum(axis=0)).items()}

    def label_values(self) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and support of each label over all examples; empty where there are no labels."""
        return self.by_label(self.counts.sum(axis=0)) if self.by_label else {}

    def select(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Statistics:
        """Return the same metrics over a slice: ``rows`` is a mask ``(examples,)`` or indices."""
        return self.remake(rows) if self.remake else replace(self, counts=self.counts[rows])


def ratio(numerator: FloatArray, denominator: FloatArray, *, undefined: float = 0.0) -> FloatArray:
    """Element-wise quotient of two arrays of one shape; ``undefined`` where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    quotient = np.full(denominator.shape, undefined)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient


def label_report(
    labels: list[str], correct: FloatArray, predicted: FloatArray, gold: FloatArray
) -> dict[str, dict[str, float]]:
    """Per label precision, recall, F1 (0..1; 0/0 is 0) and support, from ``(labels,)`` counts."""
    columns = (
        ratio(correct, predicted),
        ratio(correct, gold),
        ratio(2 * correct, predicted + gold),
        gold,
    )
    names = ("precision", "recall", "f1", "support")
    return {
        label: dict(zip(names, map(float, row), strict=True))
        for label, row in zip(labels, np.stack(columns, axis=-1), strict=True)
    }
