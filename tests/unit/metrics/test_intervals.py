from __future__ import annotations

import math
import time

import numpy as np
import pytest

from lmkit.metrics import (
    bootstrap_intervals,
    bootstrap_values,
    classification_statistics,
    language_model_statistics,
    tagging_statistics,
)
from lmkit.metrics.statistics import Statistics
from lmkit.records import Interval


def accuracy_of(hits: np.ndarray) -> Statistics:
    """The accuracy of ``(examples,)`` zeros and ones."""
    counts = np.stack([hits.astype(float), np.ones(len(hits))], axis=-1)
    return Statistics(counts, lambda sums: {"accuracy": sums[..., 0] / sums[..., 1]})


def test_agrees_with_scipy_on_a_ratio() -> None:
    from scipy.stats import bootstrap

    generator = np.random.default_rng(3)
    tokens = generator.integers(1, 100, size=150)
    nll = tokens * generator.gamma(8, 0.5, size=150)
    interval = bootstrap_intervals(
        language_model_statistics(nll, tokens, None, tokens), resamples=4000
    )["loss"]
    expected = bootstrap(
        (nll, tokens),
        lambda nll, tokens, axis: nll.sum(axis) / tokens.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert interval.low is not None
    assert interval.high is not None
    noise = 0.06 * (expected.high - expected.low)
    assert interval.low == pytest.approx(expected.low, abs=noise)
    assert interval.high == pytest.approx(expected.high, abs=noise)
    assert interval.low < interval.value < interval.high


def test_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        interval = bootstrap_intervals(
            accuracy_of(generator.random(100) < 0.8), resamples=200, seed=seed
        )["accuracy"]
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 0.8 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_more_confidence_is_wider_and_the_shares_outside_are_equal() -> None:
    statistics = accuracy_of(np.arange(50) % 3 > 0)
    values = np.sort(bootstrap_values(statistics)["accuracy"])
    for confidence, outside in ((0.5, 250), (0.9, 50), (0.95, 25), (0.99, 5)):
        interval = bootstrap_intervals(statistics, confidence=confidence)["accuracy"]
        assert (interval.low, interval.high) == (values[outside], values[-1 - outside])


def test_the_seed_alone_decides_not_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = accuracy_of(np.arange(37) % 3 > 0)
    whole = bootstrap_values(statistics, resamples=50)["accuracy"]
    assert np.array_equal(whole, bootstrap_values(statistics, resamples=50)["accuracy"])
    assert not np.array_equal(
        whole, bootstrap_values(statistics, resamples=50, seed=14)["accuracy"]
    )
    for chunk_bytes in (1, 7 * 8 * 37):
        monkeypatch.setattr("lmkit.metrics.intervals.CHUNK_BYTES", chunk_bytes)
        assert np.array_equal(whole, bootstrap_values(statistics, resamples=50)["accuracy"])


def test_two_systems_are_resampled_alike() -> None:
    hits = np.arange(40) % 4 > 0
    a, b = accuracy_of(hits), accuracy_of(~hits)
    assert np.allclose(bootstrap_values(a)["accuracy"] + bootstrap_values(b)["accuracy"], 1)


def test_no_bounds_without_resamples_or_examples_to_draw_from() -> None:
    many, one = accuracy_of(np.ones(5)), accuracy_of(np.ones(1))
    assert bootstrap_intervals(many, resamples=0) == {"accuracy": Interval(1.0, None, None)}
    assert bootstrap_intervals(one)["accuracy"].to_json() == {
        "value": 1.0,
        "low": None,
        "high": None,
    }
    assert bootstrap_intervals(classification_statistics([], [], ["a"]))["mcc"] == Interval(0.0)


def test_resamples_where_a_metric_is_undefined_are_left_out() -> None:
    half_empty = bootstrap_intervals(language_model_statistics([3.0, 0.0], [1, 0], None, [1, 0]))[
        "loss"
    ]
    assert half_empty == Interval(3.0, 3.0, 3.0)
    empty = bootstrap_intervals(language_model_statistics([0.0, 0.0], [0, 0], None, [0, 0]))["loss"]
    assert math.isnan(empty.value)
    assert empty.low is None
    assert empty.high is None


def test_a_large_test_set_takes_a_moment() -> None:
    generator = np.random.default_rng(0)
    tags = generator.choice(["O", "B-A", "I-A", "B-B", "I-B"], size=(2, 2000, 10)).tolist()
    statistics = tagging_statistics(*tags)
    start = time.process_time()  # a busy neighbour takes none of it
    bootstrap_intervals(statistics)
    assert time.process_time() - start < 5
