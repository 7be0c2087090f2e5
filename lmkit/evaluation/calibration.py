"""Trust in a model's confidence: calibration errors, the reliability curve, temperature scaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmkit.records import Record, Stored
from lmkit.tasks.answers import Answer, probabilities_of

FloatArray = NDArray[np.float64]
BINS = 15  # Guo et al. 2017
COLDEST, HOTTEST = 1 / 20, 20.0  # the temperatures among which the best is looked for
SMALLEST = 1e-30  # a probability that underflowed is not impossible


@dataclass(frozen=True)
class Bin(Stored):
    """A stretch of the reliability curve: mean confidence beside the share that is right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Scaled(Stored):
    """Loss and calibration errors at one temperature."""

    nll: float
    ece: float
    ece_equal_mass: float
    bins: list[Bin]


@dataclass(frozen=True)
class Temperature(Stored):
    """One temperature fitted on other rows, ``fitted_on`` of them, and what it does to these."""

    temperature: float
    fitted_on: int
    before: Scaled
    after: Scaled


@dataclass(frozen=True, kw_only=True)
class Calibration(Stored):
    """How well confidence and accuracy agree.

    ``ece`` is the expected calibration error over 15 bins of equal width (Guo et al. 2017, Naeini et al. 2015),
    ``ece_equal_mass`` over 15 bins of equally many (Nguyen and O'Connor 2015). ``brier`` is the mean over examples of
    the squared distance between the probabilities and the truth, summed over the labels (Brier 1950): 0..2; of words,
    for which the probability of the predicted tag alone is known, ``brier_top`` is that of being right: 0..1.
    """

    unit: str
    brier: float | None = None
    brier_top: float | None = None
    count: int
    ece: float
    ece_equal_mass: float
    bins: list[Bin]
    temperature: Temperature | None = None


def calibration(records: Sequence[Record], answer: Answer) -> Calibration | None:
    """Measure how well confidence and accuracy agree; None where nothing says how sure the model is."""
    certainty = answer.certainty(records)
    if certainty is None:
        return None
    confidence, correct = certainty.confidence, certainty.correct
    return Calibration(
        unit=certainty.unit,
        brier=certainty.scores.get("brier"),
        brier_top=certainty.scores.get("brier_top"),
        count=len(confidence),
        ece=calibration_error(confidence, correct),
        ece_equal_mass=calibration_error(confidence, correct, equal_mass=True),
        bins=reliability(confidence, correct),
    )


def reliability(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = BINS, equal_mass: bool = False
) -> list[Bin]:
    """Return the reliability curve bin by bin; empty bins are left out.

    Args:
        confidence: ``(items,)`` 0..1. correct: ``(items,)`` booleans.
        equal_mass: bins of equally many items, in the order of their confidence; else of equal width, each without
            its lower and with its upper end.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if equal_mass:
        parts = [
            part
            for part in np.array_split(np.argsort(confidence, kind="stable"), bins)
            if len(part)
        ]
        ends = [(float(confidence[part[0]]), float(confidence[part[-1]])) for part in parts]
    else:
        owner = np.clip(np.ceil(confidence * bins - 1e-9).astype(int) - 1, 0, bins - 1)
        numbers = np.unique(owner)
        parts = [np.flatnonzero(owner == number) for number in numbers]
        ends = [(number / bins, (number + 1) / bins) for number in numbers.tolist()]
    return [
        Bin(low, high, len(part), float(confidence[part].mean()), float(correct[part].mean()))
        for part, (low, high) in zip(parts, ends, strict=True)
    ]


def calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = BINS, equal_mass: bool = False
) -> float:
    """Return the mean over items of the gap between confidence and accuracy in the item's bin.

    >>> round(calibration_error([0.9, 0.9, 0.6], [True, False, True], bins=10), 4)  # (2 * |0.9 - 0.5| + |0.6 - 1|) / 3
    0.4
    """
    curve = reliability(confidence, correct, bins=bins, equal_mass=equal_mass)
    gaps = sum(part.count * abs(part.confidence - part.accuracy) for part in curve)
    return float(gaps / sum(part.count for part in curve))


def fit_temperature(probabilities: FloatArray, gold: NDArray[np.intp]) -> float:
    """Find the temperature that minimises the negative log-likelihood of the gold labels (Guo et al. 2017).

    Logarithms of probabilities are logits up to a constant, so nothing but the probabilities is needed. The loss is
    convex in the inverse of the temperature: a golden-section search over it finds the one minimum.

    Args:
        probabilities: ``(examples, labels)``. gold: ``(examples,)`` numbers of labels.
    """
    ratio = (5**0.5 - 1) / 2
    low, high = 1 / HOTTEST, 1 / COLDEST
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = _mean_nll(probabilities, gold, left), _mean_nll(probabilities, gold, right)
    while high - low > 1e-6:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = _mean_nll(probabilities, gold, left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = _mean_nll(probabilities, gold, right)
    return 2 / (low + high)


def tempered(probabilities: FloatArray, temperature: float) -> FloatArray:
    """Return probabilities at another temperature: ``softmax(log p / temperature)``; which label is first does not change."""
    logits = np.log(np.maximum(probabilities, SMALLEST)) / temperature
    raised = np.exp(logits - logits.max(1, keepdims=True))
    scaled: FloatArray = raised / raised.sum(1, keepdims=True)
    return scaled


def _mean_nll(probabilities: FloatArray, gold: NDArray[np.intp], inverse: float) -> float:
    at_gold = tempered(probabilities, 1 / inverse)[np.arange(len(gold)), gold]
    return float(-np.log(np.maximum(at_gold, SMALLEST)).mean())


def temperature_scaling(records: Sequence[Record], fitted_on: Sequence[Record]) -> Temperature:
    """Fit a temperature on other rows, and measure these before and after."""
    temperature = fit_temperature(*probabilities_of(fitted_on))
    table, gold = probabilities_of(records)
    return Temperature(
        temperature,
        len(fitted_on),
        before=_measure_scaled(table, gold),
        after=_measure_scaled(tempered(table, temperature), gold),
    )


def _measure_scaled(table: FloatArray, gold: NDArray[np.intp]) -> Scaled:
    confidence, correct = table.max(1), table.argmax(1) == gold
    return Scaled(
        nll=_mean_nll(table, gold, 1.0),
        ece=calibration_error(confidence, correct),
        ece_equal_mass=calibration_error(confidence, correct, equal_mass=True),
        bins=reliability(confidence, correct),
    )
