"""Confidence intervals of any metric by resampling its examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np

from lmkit.metrics.statistics import FloatArray, Statistics
from lmkit.records import Interval

CHUNK_BYTES = 32 << 20  # of resampling weights held at once
Kind = Literal["percentile", "bca"]


def bootstrap_intervals(
    statistics: Statistics,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 13,
    kind: Kind = "percentile",
) -> dict[str, Interval]:
    """Bootstrap over examples (Efron 1979): how much each metric varies with the choice of the test set.

    It says nothing of another training seed. The value is of the data as they are and is not forced into the interval:
    a metric that is biased in resamples (macro F1 with rare labels, perplexity) may lie near a bound or outside. Few
    examples make intervals too narrow: nominal 95 % covered 92 % for an accuracy of 0.8 over 20 examples, 95 % over 50.

    Args:
        confidence: the nominal coverage, between 0 and 1.
        resamples: 0 gives values without bounds, as do fewer than 2 examples, or a metric that is nan in all resamples.
            Resamples where a metric is nan (no tokens drawn) are left out for that metric.
        seed: the same seed gives the same intervals.
        kind: ``percentile`` takes the quantiles of the resamples as they are; ``bca`` corrects them for bias and for a
            spread that changes with the value (Efron 1987), at the price of a metric for each example left out.
    """
    assert 0 < confidence < 1
    assert resamples >= 0
    values = statistics.values()
    if resamples == 0 or statistics.examples < 2:
        return {name: Interval(value) for name, value in values.items()}
    resampled = bootstrap_values(statistics, resamples=resamples, seed=seed)
    if kind == "percentile":
        return {
            name: Interval(value, *percentiles(resampled[name], confidence))
            for name, value in values.items()
        }
    left_out = statistics.metrics(statistics.counts.sum(axis=0) - statistics.counts)
    return {
        name: Interval(value, *_bca(value, resampled[name], left_out[name], confidence))
        for name, value in values.items()
    }


def bootstrap_values(
    statistics: Statistics, *, resamples: int = 1000, seed: int = 13
) -> dict[str, FloatArray]:
    """Return each metric in each resample, ``(resamples,)`` by name.

    The resamples depend on the seed and the number of examples alone: with one seed, two systems scored on the same
    examples are resampled alike, so the difference of their values is a paired bootstrap (Koehn 2004). Memory is
    bounded by ``CHUNK_BYTES`` of weights, whatever the number of examples; the chunking does not change the resamples
    (nor the values, but for the rounding of sums that are not whole numbers).
    """
    examples = statistics.examples
    assert resamples > 0
    assert examples > 0
    generator = np.random.Generator(np.random.Philox(seed))
    chunk = min(resamples, max(1, CHUNK_BYTES // (8 * examples)))
    weights = np.empty((chunk, examples))
    sums = np.empty((resamples, statistics.counts.shape[1]))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        for row in weights[:size]:
            # Multinomial weights, by counting draws: several times faster than a binomial per example.
            row[:] = np.bincount(generator.integers(examples, size=examples), minlength=examples)
        sums[start : start + size] = weights[:size] @ statistics.counts
    return statistics.metrics(sums)


def student_interval(
    values: Sequence[float | None], confidence: float = 0.95
) -> dict[str, float | None]:
    """Return ``mean``, ``sd`` (n - 1) and the bounds of Student's interval (``low``, ``high``) of one number from several runs.

    All are None where a run has no value; of a single run there are no sd and no bounds.
    """
    from scipy.stats import t

    present = [value for value in values if value is not None]
    if len(present) < len(values) or not present:
        return dict.fromkeys(("mean", "sd", "low", "high"))
    mean, number = float(np.mean(present)), len(present)
    if number < 2:
        return {"mean": mean, "sd": None, "low": None, "high": None}
    sd = float(np.std(present, ddof=1))
    half = float(t.ppf((1 + confidence) / 2, number - 1)) * sd / math.sqrt(number)
    return {"mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def percentiles(values: FloatArray, confidence: float) -> tuple[float, float] | tuple[None, None]:
    """Return the bounds that leave an equal share of the values on either side; None of no values."""
    outside = (1 - confidence) / 2
    return _quantiles(values, outside, outside)


def _quantiles(
    values: FloatArray, below: float, above: float
) -> tuple[float, float] | tuple[None, None]:
    """Return the bounds that leave these shares of the values outside; None of no values.

    They are values themselves: interpolating between two infinite perplexities would give nan.
    """
    ordered = np.sort(values[~np.isnan(values)])
    if not len(ordered):
        return None, None
    # 0.05 * 1000 is 49.999... in binary
    low, high = (
        min(math.floor(share * len(ordered) + 1e-9), len(ordered) - 1) for share in (below, above)
    )
    return float(ordered[low]), float(ordered[-1 - high])


def _bca(
    value: float, resampled: FloatArray, left_out: FloatArray, confidence: float
) -> tuple[float, float] | tuple[None, None]:
    """Bias-corrected and accelerated bounds (Efron 1987).

    Args:
        value: the metric of all examples.
        left_out: ``(examples,)`` the metric without each of them.
    """
    finite = resampled[np.isfinite(resampled)]
    spread = left_out.mean() - left_out
    if not len(finite) or not math.isfinite(value) or not np.isfinite(spread).all():
        return percentiles(resampled, confidence)
    normal = NormalDist()
    below = ((finite < value).mean() + (finite <= value).mean()) / 2
    if not 0 < below < 1:  # all resamples on one side of the value: there is no correcting that
        return percentiles(resampled, confidence)
    bias = normal.inv_cdf(float(below))
    scale = 6 * (spread**2).sum() ** 1.5
    acceleration = float((spread**3).sum() / scale) if scale > 0 else 0.0

    def share(z: float) -> float:
        return normal.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))

    z = normal.inv_cdf((1 + confidence) / 2)
    return _quantiles(finite, share(-z), 1 - share(z))
