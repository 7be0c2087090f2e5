"""Metrics of several labels and of numbers are scikit-learn's and SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error
from sklearn.preprocessing import MultiLabelBinarizer

from lmkit.metrics.intervals import bootstrap_intervals
from lmkit.metrics.multi_label import multi_label_statistics
from lmkit.metrics.regression import regression_statistics

LABELS = ["a", "b", "c"]
GOLD = [["a"], ["a", "b"], [], ["c"], ["b", "c"], []]
PREDICTED = [["a"], ["b"], [], ["a", "c"], ["b", "c"], ["a"]]


def test_several_labels_equal_scikit_learn() -> None:
    binarizer = MultiLabelBinarizer(classes=LABELS)
    gold, predicted = binarizer.fit_transform(GOLD), binarizer.transform(PREDICTED)
    expected = {
        "accuracy": accuracy_score(gold, predicted),
        "f1_macro": f1_score(gold, predicted, average="macro"),
        "f1_micro": f1_score(gold, predicted, average="micro"),
        "f1_samples": f1_score(gold, predicted, average="samples", zero_division=1),
        "mcc": matthews_corrcoef(gold.ravel(), predicted.ravel()),
    }
    statistics = multi_label_statistics(GOLD, PREDICTED, LABELS)
    assert statistics.values() == pytest.approx(expected)
    assert statistics.label_values()["a"] == pytest.approx(
        {"precision": 1 / 3, "recall": 1 / 2, "f1": 0.4, "support": 2}
    )


def test_a_label_that_nobody_names_does_not_pull_the_macro_f1_down() -> None:
    one, more = (
        multi_label_statistics([["a"]], [["a"]], labels).values() for labels in (["a"], ["a", "z"])
    )
    assert one["f1_macro"] == more["f1_macro"] == 1


def test_no_examples_are_zero() -> None:
    assert set(multi_label_statistics([], [], LABELS).values().values()) == {0}
    assert set(regression_statistics([], []).values().values()) == {0}


def test_numbers_equal_scipy() -> None:
    generator = np.random.default_rng(3)
    gold = generator.normal(1e6, 2, 50).round(0)  # ties, and large against their spread
    predicted = gold + generator.normal(0, 2, 50)
    values = regression_statistics(gold, predicted).values()
    assert values["pearson"] == pytest.approx(pearsonr(gold, predicted).statistic)
    assert values["spearman"] == pytest.approx(spearmanr(gold, predicted).statistic)
    assert values["mse"] == pytest.approx(mean_squared_error(gold, predicted))


def test_a_constant_has_no_correlation() -> None:
    values = regression_statistics([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]).values()
    assert (values["pearson"], values["spearman"]) == (0, 0)


def test_resamples_of_numbers_are_those_of_the_chosen_rows() -> None:
    gold, predicted = [1.0, 2.0, 4.0, 3.0], [0.5, 2.5, 3.0, 3.5]
    chosen = np.array([0, 2, 2, 3])
    found = regression_statistics(gold, predicted).select(chosen).values()
    assert found["pearson"] == pytest.approx(
        pearsonr(np.array(gold)[chosen], np.array(predicted)[chosen]).statistic
    )
    interval = bootstrap_intervals(regression_statistics(gold * 10, predicted * 10), resamples=200)[
        "spearman"
    ]
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low <= interval.value <= interval.high


def test_ranks_of_some_rows_are_their_own() -> None:
    generator = np.random.default_rng(1)
    gold, predicted = generator.normal(size=80), generator.normal(size=80)
    chosen = np.flatnonzero(gold > 0.5)
    found = regression_statistics(gold.tolist(), predicted.tolist()).select(chosen).values()
    assert found["spearman"] == pytest.approx(spearmanr(gold[chosen], predicted[chosen]).statistic)
