from __future__ import annotations

import math

import numpy as np
import pytest

from lmkit.metrics import bootstrap_intervals, language_model_statistics


def test_sums_are_divided_once() -> None:
    values = language_model_statistics([10.0, 2.0], [5, 1], [20, 4], [3, 0]).values()
    assert values == pytest.approx(
        {
            "loss": 2.0,
            "perplexity": math.exp(2),
            "bits_per_byte": 12 / math.log(2) / 24,
            "accuracy": 0.5,
        }
    )


def test_does_not_depend_on_how_documents_are_grouped() -> None:
    generator = np.random.default_rng(0)
    columns = generator.integers(1, 50, size=(4, 30)).astype(float)
    whole = language_model_statistics(*columns).values()
    assert language_model_statistics(
        *columns.reshape(4, 10, 3).sum(axis=2)
    ).values() == pytest.approx(whole)


def test_masked_models_have_no_bits_per_byte() -> None:
    assert set(language_model_statistics([1.0], [1], None, [1]).values()) == {
        "loss",
        "perplexity",
        "accuracy",
    }


def test_a_perplexity_too_large_is_infinite_without_a_warning() -> None:
    statistics = language_model_statistics([1e6, 1e6, 1e6], [1, 1, 1], [1, 1, 1], [0, 0, 0])
    assert statistics.values()["perplexity"] == math.inf
    interval = bootstrap_intervals(statistics, resamples=20)["perplexity"]
    assert (interval.low, interval.high) == (math.inf, math.inf)


@pytest.mark.parametrize("documents", [0, 1])
def test_nothing_measured_is_not_a_perfect_loss(documents: int) -> None:
    zeros = np.zeros(documents)
    values = language_model_statistics(zeros, zeros, zeros, zeros).values()
    assert all(math.isnan(values[name]) for name in ("loss", "perplexity", "bits_per_byte"))
    assert values["accuracy"] == 0
