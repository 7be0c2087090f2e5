from __future__ import annotations

import warnings

import numpy as np
import pytest

from lmkit.metrics import classification_statistics

LABELS = ["a", "b", "c", "never"]


def draw(seed: int, examples: int = 60) -> tuple[list[str], list[str]]:
    generator = np.random.default_rng(seed)
    gold = generator.choice(LABELS[:3], examples, p=[0.7, 0.2, 0.1])
    predicted = np.where(
        generator.random(examples) < 0.6, gold, generator.choice(LABELS[:3], examples)
    )
    return gold.tolist(), predicted.tolist()


def by_sklearn(gold: list[str], predicted: list[str]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "accuracy": accuracy_score(gold, predicted),
            "f1_macro": f1_score(gold, predicted, average="macro", zero_division=0),
            "mcc": matthews_corrcoef(gold, predicted),
        }


@pytest.mark.parametrize(
    ("gold", "predicted"),
    [
        *(draw(seed) for seed in range(5)),
        draw(9, examples=3),
        (["a", "a"], ["a", "a"]),  # mcc is 0/0
        (["a", "b"], ["a", "a"]),
        (["a", "a"], ["b", "c"]),
        (["b"], ["a"]),
    ],
)
def test_equals_sklearn(gold: list[str], predicted: list[str]) -> None:
    assert classification_statistics(gold, predicted, LABELS).values() == pytest.approx(
        by_sklearn(gold, predicted)
    )


def test_each_resample_equals_sklearn_on_the_repeated_examples() -> None:
    gold, predicted = draw(1, examples=8)
    statistics = classification_statistics(gold, predicted, LABELS)
    generator = np.random.default_rng(0)
    draws = generator.integers(8, size=(30, 8))
    resampled = statistics.metrics(statistics.counts[draws].sum(axis=1))
    for i, rows in enumerate(draws):
        expected = by_sklearn([gold[row] for row in rows], [predicted[row] for row in rows])
        assert {name: values[i] for name, values in resampled.items()} == pytest.approx(expected)


def test_by_label_equals_sklearn_and_keeps_the_order_of_the_labels() -> None:
    from sklearn.metrics import precision_recall_fscore_support

    gold, predicted = draw(3)
    report = classification_statistics(gold, predicted, LABELS).label_values()
    expected = precision_recall_fscore_support(gold, predicted, labels=LABELS, zero_division=0)
    assert list(report) == LABELS
    for column, name in enumerate(["precision", "recall", "f1", "support"]):
        assert [report[label][name] for label in LABELS] == pytest.approx(list(expected[column]))


def test_a_label_that_is_not_known_counts_as_a_class_of_its_own() -> None:
    statistics = classification_statistics(["a", "new"], ["a", "a"], ["a"])
    assert statistics.values() == pytest.approx(by_sklearn(["a", "new"], ["a", "a"]))
    assert statistics.label_values()["new"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}


def test_no_examples() -> None:
    assert classification_statistics([], [], LABELS).values() == {
        "accuracy": 0,
        "f1_macro": 0,
        "mcc": 0,
    }
    assert classification_statistics([], [], []).values() == {
        "accuracy": 0,
        "f1_macro": 0,
        "mcc": 0,
    }


def test_a_slice_is_scored_alone() -> None:
    gold, predicted = draw(4)
    mask = np.arange(60) % 3 == 0
    expected = by_sklearn(gold[::3], predicted[::3])
    assert classification_statistics(gold, predicted, LABELS).select(
        mask
    ).values() == pytest.approx(expected)


def test_different_numbers_of_labels_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="2 gold labels, 1 predicted"):
        classification_statistics(["a", "a"], ["a"], ["a"])
