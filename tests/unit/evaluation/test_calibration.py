"""Confidence beside what is right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from lmkit.evaluation.calibration import (
    calibration,
    calibration_error,
    fit_temperature,
    reliability,
    temperature_scaling,
    tempered,
)
from lmkit.tasks.answers import Label, Tags


def record(gold: str, **probabilities: float) -> dict:
    best = max(probabilities, key=lambda name: probabilities[name])
    return {
        "gold": gold,
        "prediction": best,
        "score": probabilities[best],
        "probabilities": probabilities,
    }


def test_the_calibration_error_is_that_of_a_calculation_by_hand() -> None:
    # bins of 0.1: {0.95, 0.95, 0.92} with 2 of 3 right, {0.55} right; (3 * |0.94 - 2/3| + |0.55 - 1|) / 4
    confidence, correct = [0.95, 0.95, 0.92, 0.55], [True, False, True, True]
    assert calibration_error(confidence, correct, bins=10) == pytest.approx(
        (3 * (0.94 - 2 / 3) + 0.45) / 4
    )
    # two bins of two: {0.55, 0.92} both right, {0.95, 0.95} one right
    expected = (2 * (1 - 0.735) + 2 * 0.45) / 4
    assert calibration_error(confidence, correct, bins=2, equal_mass=True) == pytest.approx(
        expected
    )


def test_a_border_belongs_to_the_bin_below_and_one_to_the_last() -> None:
    found = reliability([0.2, 0.3, 1.0], [True, True, True], bins=10)
    assert [(part.low, part.count) for part in found] == [(0.1, 1), (0.2, 1), (0.9, 1)]


def test_the_curve_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    confidence = rng.random(500)
    correct = rng.random(500) < confidence
    found = reliability(confidence, correct, bins=15)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    assert [part.accuracy for part in found] == pytest.approx(accuracy.tolist())
    assert [part.confidence for part in found] == pytest.approx(mean.tolist())


def test_the_brier_score_of_two_labels_is_twice_that_of_one() -> None:
    records = [record("a", a=0.7, b=0.3), record("b", a=0.6, b=0.4)]
    found = calibration(records, Label())
    assert found is not None
    assert found.brier == pytest.approx(2 * brier_score_loss([1, 0], [0.7, 0.6]))
    assert (found.unit, found.count) == ("examples", 2)


def test_words_that_the_tokenizer_dropped_are_not_counted() -> None:
    found = calibration(
        [{"score": [0.8, 0.0], "gold": ["O", "O"], "prediction": ["O", "O"]}], Tags()
    )
    assert found is not None
    assert (found.count, found.ece) == (1, pytest.approx(0.2))


def test_the_temperature_is_the_one_that_scipy_finds() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(400, 3)) * 2
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gold = np.array([rng.choice(3, p=row) for row in true])
    sharp = tempered(true, 0.4)  # too sure by a known temperature
    found = fit_temperature(sharp, gold)
    reference = minimize_scalar(
        lambda t: log_loss(gold, tempered(sharp, t)), bounds=(0.05, 20), method="bounded"
    ).x
    assert found == pytest.approx(reference, rel=1e-3)
    assert found == pytest.approx(2.5, rel=0.15)


def test_a_temperature_mends_what_is_too_sure_and_changes_no_prediction() -> None:
    sure = [record("a", a=0.99, b=0.01)] * 7 + [record("b", a=0.99, b=0.01)] * 3
    found = temperature_scaling(sure, sure)
    assert found.before.ece == pytest.approx(0.29)
    assert found.after.ece == pytest.approx(0, abs=1e-3)
    assert found.after.nll < found.before.nll
    assert found.temperature == pytest.approx(np.log(99) / np.log(0.7 / 0.3), rel=1e-3)
