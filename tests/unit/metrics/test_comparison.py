"""Paired tests: against scipy, by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmkit.metrics import (
    Statistics,
    bootstrap_intervals,
    classification_statistics,
    language_model_statistics,
)
from lmkit.metrics.comparison import holm, mcnemar, paired_bootstrap, permutation_test


def accuracy_of(hits: np.ndarray) -> Statistics:
    """The accuracy of ``(examples,)`` zeros and ones."""
    counts = np.stack([hits.astype(float), np.ones(len(hits))], axis=-1)
    return Statistics(counts, lambda sums: {"accuracy": sums[..., 0] / sums[..., 1]})


def right(examples: int, *wrong: range) -> Statistics:
    hits = np.ones(examples, bool)
    for numbers in wrong:
        hits[list(numbers)] = False
    return accuracy_of(hits)


# 500 examples: 26 that both have wrong, 22 that a alone has wrong, 7 that b alone has wrong
A, B = right(500, range(26), range(26, 48)), right(500, range(26), range(48, 55))


def test_difference_that_an_unpaired_test_overlooks_is_found() -> None:
    """Unpaired p = .080 where McNemar says .008 [lm-evaluation-harness#3831]."""
    a, b = A.values()["accuracy"], B.values()["accuracy"]
    unpaired = math.erfc((b - a) / math.sqrt((a * (1 - a) + b * (1 - b)) / 500) / math.sqrt(2))
    assert round(unpaired, 2) == 0.08
    exact = mcnemar(A, B)
    assert exact is not None
    assert round(exact, 3) == 0.008
    found = paired_bootstrap([A], [B], "accuracy")
    assert found.p_value < 0.02
    assert found.low is not None
    assert 0 < found.low < found.difference == pytest.approx(0.03)
    assert permutation_test(A, B, "accuracy") == pytest.approx(exact, abs=0.004)


def test_mcnemar_is_the_binomial_test_of_the_examples_they_differ_on() -> None:
    from scipy.stats import binomtest

    assert mcnemar(A, B) == pytest.approx(binomtest(7, 29).pvalue)
    assert mcnemar(B, A) == mcnemar(A, B)
    assert mcnemar(A, A) == 1.0
    words = Statistics(np.array([[1.0, 2.0], [2.0, 2.0]]), A.metrics)
    assert mcnemar(words, words) is None


def test_permutation_agrees_with_scipy_on_a_ratio() -> None:
    from scipy.stats import permutation_test as reference

    generator = np.random.default_rng(5)
    tokens = np.full(40, 10)
    nll = 10 * generator.gamma(8, 0.5, size=(2, 40))
    nll[1] += 3.5
    a, b = (language_model_statistics(column, tokens, None, tokens) for column in nll)
    expected = reference(
        tuple(nll),
        lambda x, y: x.sum() - y.sum(),
        permutation_type="samples",
        n_resamples=9999,
        rng=np.random.default_rng(0),
    ).pvalue
    assert 0.01 < expected < 0.5
    assert permutation_test(a, b, "loss") == pytest.approx(expected, abs=0.015)


def test_p_value_and_interval_never_contradict_each_other() -> None:
    generator = np.random.default_rng(1)
    decided = 0
    for seed in range(40):
        a, b = generator.random(60) < 0.6, generator.random(60) < 0.75
        found = paired_bootstrap(
            [accuracy_of(a)], [accuracy_of(b)], "accuracy", resamples=199, seed=seed
        )
        assert found.low is not None
        assert found.high is not None
        assert (found.p_value <= 0.05) == (found.low > 0 or found.high < 0)
        decided += found.p_value <= 0.05
    assert 0 < decided < 40


def test_system_against_itself_is_not_distinguishable() -> None:
    found = paired_bootstrap([A], [A], "accuracy", resamples=200)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1.0)
    assert permutation_test(A, A, "accuracy", resamples=200) == 1.0


def test_too_few_resamples_give_no_bounds() -> None:
    found = paired_bootstrap([A], [B], "accuracy", resamples=20)
    assert (found.low, found.high) == (None, None)


def test_equal_systems_are_seldom_called_different() -> None:
    """In at most 6 % of 300 test sets at level 5 %."""
    generator, wrong = np.random.default_rng(2), 0
    for seed in range(300):
        hard = generator.random(100) < 0.6
        a, b = (accuracy_of(hard | (generator.random(100) < 0.4)) for _ in range(2))
        wrong += paired_bootstrap([a], [b], "accuracy", resamples=199, seed=seed).p_value <= 0.05
    assert wrong / 300 <= 0.06


def test_spread_between_seeds_counts() -> None:
    """Recipes whose runs differ by the seed alone: at most 8 % of 200 pairs, where the examples alone decide about most."""
    generator, wrong, naive = np.random.default_rng(3), 0, 0
    for seed in range(200):
        quality = (0.6 + 0.12 * generator.standard_normal((2, 3))).clip(0, 1)
        sides = [[accuracy_of(generator.random(100) < q) for q in side] for side in quality]
        wrong += paired_bootstrap(*sides, "accuracy", resamples=119, seed=seed).p_value <= 0.05
        naive += (
            paired_bootstrap(
                sides[0][:1], sides[1][:1], "accuracy", resamples=119, seed=seed
            ).p_value
            <= 0.05
        )
    assert wrong / 200 <= 0.08
    assert naive / 200 > 0.3


def test_several_seeds_are_worth_their_mean() -> None:
    found = paired_bootstrap([A, B], [B], "accuracy", resamples=200)
    assert found.a == pytest.approx((0.904 + 0.934) / 2)
    assert found.b == pytest.approx(0.934)


def test_holm_is_the_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_bca_agrees_with_scipy() -> None:
    from scipy.stats import bootstrap

    generator = np.random.default_rng(3)
    tokens = generator.integers(1, 100, size=60)
    nll = tokens * generator.gamma(0.2, 20, size=60)  # skewed
    statistics = language_model_statistics(nll, tokens, None, tokens)
    plain, corrected = (
        bootstrap_intervals(statistics, resamples=4000, kind=kind)["loss"]
        for kind in ("percentile", "bca")
    )
    expected = bootstrap(
        (nll, tokens),
        lambda nll, tokens, axis: nll.sum(axis) / tokens.sum(axis),
        paired=True,
        method="BCa",
        n_resamples=4000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert None not in (plain.low, plain.high, corrected.low, corrected.high)
    noise = 0.05 * (expected.high - expected.low)
    assert corrected.low == pytest.approx(expected.low, abs=noise)
    assert corrected.high == pytest.approx(expected.high, abs=noise)
    assert corrected.high - plain.high > 2 * noise  # type: ignore[operator]


def test_bca_of_what_never_changes_is_a_point() -> None:
    statistics = classification_statistics(["a"] * 9, ["a"] * 9, ["a"])
    found = bootstrap_intervals(statistics, resamples=100, kind="bca")["accuracy"]
    assert (found.low, found.value, found.high) == (1, 1, 1)
