"""Tests if one system is better than another on the same examples: paired tests, never two intervals side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmkit.metrics.intervals import CHUNK_BYTES, bootstrap_values
from lmkit.metrics.statistics import FloatArray, Statistics


@dataclass(frozen=True)
class Difference:
    """What ``b`` has more than ``a``, its interval, and how probable so large a difference is between equals.

    The bounds are None where there are too few resamples or examples to say.
    """

    a: float
    b: float
    low: float | None
    high: float | None
    p_value: float

    @property
    def difference(self) -> float:
        return self.b - self.a


def paired_bootstrap(
    a: Sequence[Statistics],
    b: Sequence[Statistics],
    metric: str,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 13,
) -> Difference:
    """Resample the examples, the same ones for both systems (Koehn 2004), and see how often the difference changes sign.

    The p-value is two-sided: twice the share of resamples on the other side of zero, those on zero counted as being
    there. So it is below ``1 - confidence`` exactly where the interval leaves zero out.

    Where a side is several runs (seeds) of one recipe, its value is their mean, and to each resample is added what other
    seeds could have given: a draw from Student's t with the runs' pooled spread. Drawing again from three runs would be
    too small a spread: between equal systems it says "better" far too often. A side of one run is taken to spread like
    the other.

    Args:
        a, b: the runs of each side; all over the same examples in the same order.
        metric: one that the statistics have.
    """
    assert len({statistics.examples for statistics in [*a, *b]}) == 1, (
        "runs over different examples"
    )
    values_a, values_b = ([float(run.values()[metric]) for run in side] for side in (a, b))
    value_a, value_b = float(np.mean(values_a)), float(np.mean(values_b))
    if resamples == 0 or a[0].examples < 2:
        return Difference(value_a, value_b, None, None, 1.0)
    resampled = _mean_resample(b, metric, resamples, seed) - _mean_resample(
        a, metric, resamples, seed
    )
    freedom = len(a) + len(b) - 2
    if freedom:
        pooled = (
            sum(
                ((np.asarray(values) - np.mean(values)) ** 2).sum()
                for values in (values_a, values_b)
            )
            / freedom
        )
        generator = np.random.Generator(
            np.random.Philox(np.random.SeedSequence([seed, len(a), len(b)]))
        )
        resampled = resampled + math.sqrt(
            pooled * (1 / len(a) + 1 / len(b))
        ) * generator.standard_t(freedom, resamples)
    return Difference(value_a, value_b, *_bounds_and_p(resampled, confidence))


def _mean_resample(
    side: Sequence[Statistics], metric: str, resamples: int, seed: int
) -> FloatArray:
    """Return the mean of a side's runs in each resample, ``(resamples,)``."""
    values = [bootstrap_values(run, resamples=resamples, seed=seed)[metric] for run in side]
    mean: FloatArray = np.mean(values, axis=0)
    return mean


def _bounds_and_p(
    resampled: FloatArray, confidence: float
) -> tuple[float | None, float | None, float]:
    """(low, high, p): quantiles and counts over resamples + 1, so that interval and p-value never contradict each other."""
    ordered = np.sort(resampled[~np.isnan(resampled)])
    number = len(ordered) + 1
    at_most, at_least = int((ordered <= 0).sum()) + 1, int((ordered >= 0).sum()) + 1
    outside = math.floor((1 - confidence) / 2 * number + 1e-9)
    low, high = (
        (float(ordered[outside - 1]), float(ordered[-outside]))
        if 0 < outside <= len(ordered)
        else (None, None)
    )
    return low, high, min(1.0, 2 * min(at_most, at_least) / number)


def permutation_test(
    a: Statistics, b: Statistics, metric: str, *, resamples: int = 10_000, seed: int = 13
) -> float:
    """Approximate randomisation (Noreen 1989): exchange the systems' outputs example by example, by the toss of a coin.

    The p-value is the share of exchanges, the one found included, that part the systems at least as much as they are.

    Args:
        a, b: statistics with the same columns (scored together).
    """
    assert a.counts.shape == b.counts.shape, "not scored together"
    difference_here = abs(b.values()[metric] - a.values()[metric])
    if not math.isfinite(difference_here):
        return 1.0
    examples = a.examples
    generator = np.random.Generator(np.random.Philox(seed))
    difference, sums_a, sums_b = a.counts - b.counts, a.counts.sum(axis=0), b.counts.sum(axis=0)
    chunk, at_least = max(1, CHUNK_BYTES // (8 * max(1, examples))), 1
    for start in range(0, resamples, chunk):
        swapped = (
            generator.integers(2, size=(min(chunk, resamples - start), examples)).astype(np.float64)
            @ difference
        )
        apart = np.abs(b.metrics(sums_b + swapped)[metric] - a.metrics(sums_a - swapped)[metric])
        at_least += int(
            (apart >= difference_here - 1e-12 * max(1.0, difference_here)).sum()
        )  # rounding parts no equals
    return at_least / (resamples + 1)


def mcnemar(a: Statistics, b: Statistics) -> float | None:
    """Return the exact p-value of McNemar (1947) for accuracy: of the examples that one system alone has right, how many are whose.

    None where an example is not simply right or wrong (the words of a sentence).
    """
    right = []
    for statistics in (a, b):
        accuracy = statistics.metrics(statistics.counts)["accuracy"]
        if not np.isin(accuracy, (0.0, 1.0)).all():
            return None
        right.append(accuracy == 1)
    from scipy.stats import binom

    alone_a, alone_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    discordant, fewer = alone_a + alone_b, min(alone_a, alone_b)
    return float(min(1.0, 2 * binom.cdf(fewer, discordant, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values that allow for how many were looked at (Holm 1979): the chance of one false finding among all stays that of one.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = largest
    return adjusted
