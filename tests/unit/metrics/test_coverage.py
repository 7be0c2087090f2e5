"""By simulation: 95 % intervals cover the truth in 93 to 97 % of test sets, and equals are seldom told apart."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels

from lmkit.metrics import (
    Statistics,
    bootstrap_intervals,
    classification_statistics,
    tagging_statistics,
)
from lmkit.metrics.comparison import mcnemar, paired_bootstrap

SETS, RESAMPLES = 1000, 1000


def population(generator: np.random.Generator, sentences: int) -> Statistics:
    """Tagged sentences of 8 words with entities that a system finds, misses, cuts short or makes up."""
    gold, predicted = [], []
    for draw in generator.random((sentences, 4)):
        tags, found = ["O"] * 8, ["O"] * 8
        if draw[0] < 0.7:
            tags[1:3] = found[1:3] = ["B-PER", "I-PER"]
            if draw[1] < 0.3:
                found[2] = "O"
        if draw[2] < 0.4:
            tags[5] = "B-LOC"
            found[5] = "B-LOC" if draw[3] < 0.6 else "O"
        elif draw[3] < 0.15:
            found[6] = "B-LOC"
        gold.append(tags)
        predicted.append(found)
    return tagging_statistics(gold, predicted)


def covered(everything: Statistics, metric: str, *, size: int, kind: str) -> float:
    """The share of test sets, drawn from everything there is, whose interval holds the value of everything."""
    generator, truth, hits = np.random.default_rng(5), everything.values()[metric], 0
    for seed in range(SETS):
        drawn = everything.select(generator.integers(everything.examples, size=size))
        interval = bootstrap_intervals(drawn, resamples=RESAMPLES, seed=seed, kind=kind)[metric]  # type: ignore[arg-type]
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= truth <= interval.high
    return hits / SETS


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["percentile", "bca"])
def test_intervals_of_accuracy_cover_the_truth(kind: str) -> None:
    labels = ["a", "b"]
    gold = np.random.default_rng(1).choice(labels, 20_000)
    wrong = np.random.default_rng(2).random(20_000) < 0.2
    predicted = np.where(wrong, np.where(gold == "a", "b", "a"), gold)
    everything = classification_statistics(gold.tolist(), predicted.tolist(), labels)
    assert 0.93 <= covered(everything, "accuracy", size=300, kind=kind) <= 0.97


@pytest.mark.slow
def test_intervals_of_entity_f1_cover_the_truth() -> None:
    everything = population(np.random.default_rng(3), 20_000)
    assert 0.93 <= covered(everything, "f1", size=300, kind="percentile") <= 0.97


@pytest.mark.slow
def test_equal_systems_are_called_different_in_at_most_six_of_a_hundred_test_sets() -> None:
    generator, wrong = np.random.default_rng(4), 0
    for seed in range(SETS):
        gold = generator.choice(["a", "b"], 200)
        hard = generator.random(200) < 0.6
        systems = [np.where(hard | (generator.random(200) < 0.5), gold, "c") for _ in range(2)]
        a, b = (
            classification_statistics(gold.tolist(), system.tolist(), ["a", "b", "c"])
            for system in systems
        )
        wrong += paired_bootstrap([a], [b], "accuracy", resamples=199, seed=seed).p_value <= 0.05
    assert wrong / SETS <= 0.06


@pytest.mark.parametrize(("a_alone", "b_alone"), [(22, 7), (3, 3), (0, 5), (1, 12)])
def test_mcnemar_is_that_of_statsmodels(a_alone: int, b_alone: int) -> None:
    gold = ["a"] * 60
    wrong_of_a = range(10, 10 + a_alone)
    wrong_of_b = range(10 + a_alone, 10 + a_alone + b_alone)
    a, b = (
        classification_statistics(gold, ["b" if i in wrong else "a" for i in range(60)], ["a", "b"])
        for wrong in (wrong_of_a, wrong_of_b)
    )
    table = [[60 - a_alone - b_alone, b_alone], [a_alone, 0]]
    assert mcnemar(a, b) == pytest.approx(mcnemar_of_statsmodels(table, exact=True).pvalue)
