"""A number per example: correlations and squared error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmkit.metrics.statistics import FloatArray, Statistics, ratio


def regression_statistics(gold: Sequence[float], predicted: Sequence[float]) -> Statistics:
    """``pearson``, ``spearman`` (-1..1; 0 where one side is constant) and ``mse``, equal to SciPy's.

    Spearman's is the correlation of ranks, ties sharing their mean rank. In a bootstrap resample the ranks stay those
    of the data resampled, so that sums suffice: the interval is that of the correlation of these ranks.

    Args:
        gold, predicted: ``(examples,)`` finite numbers.
    """
    assert len(gold) == len(predicted), f"{len(gold)} gold numbers, {len(predicted)} predicted"
    x, y = np.asarray(gold, np.float64), np.asarray(predicted, np.float64)
    squares = (x - y) ** 2
    # centred alike for any predictions, so that rows of two systems can change places; sums of large squares lose digits
    middle, middle_rank = (x.mean() if len(x) else 0.0), (len(x) + 1) / 2
    raw, ranks = (
        _products(x - middle, y - middle),
        _products(_ranks(x) - middle_rank, _ranks(y) - middle_rank),
    )
    columns = [np.ones_like(x), squares, *raw, *ranks]

    def metrics(sums: FloatArray) -> dict[str, FloatArray]:
        count, squared, *rest = np.moveaxis(sums, -1, 0)
        return {
            "pearson": _correlation(count, *rest[:5]),
            "spearman": _correlation(count, *rest[5:]),
            "mse": ratio(squared, count),
        }

    return Statistics(
        np.stack(columns, axis=1),
        metrics,
        remake=lambda rows: regression_statistics(x[rows].tolist(), y[rows].tolist()),
    )


def _products(x: FloatArray, y: FloatArray) -> list[FloatArray]:
    """Return the five columns whose sums a correlation needs."""
    return [x, y, x * x, y * y, x * y]


def _correlation(
    count: FloatArray, x: FloatArray, y: FloatArray, xx: FloatArray, yy: FloatArray, xy: FloatArray
) -> FloatArray:
    spread = np.maximum(count * xx - x * x, 0) * np.maximum(count * yy - y * y, 0)
    return np.clip(ratio(count * xy - x * y, np.sqrt(spread)), -1, 1)


def _ranks(values: FloatArray) -> FloatArray:
    """Ranks from 1, equal values sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends: NDArray[np.int64] = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], np.float64)
