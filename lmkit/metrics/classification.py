"""Accuracy, macro F1 and Matthews correlation of one label per example."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmkit.metrics.statistics import FloatArray, Statistics, label_report, ratio


def classification_statistics(
    gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]
) -> Statistics:
    """``accuracy`` and ``f1_macro`` (0..1) and ``mcc`` (-1..1), equal to scikit-learn's defaults with zero_division=0.

    ``f1_macro`` is the mean over the labels that occur in gold or predictions; in a bootstrap resample, over those that
    occur in the resample. ``mcc`` is the multi-class R_K of Gorodkin (2004), 0 where it is undefined (all gold or all
    predictions alike). Without examples everything is 0. Memory: 24 bytes x examples x labels.

    Args:
        gold: ``(examples,)`` labels.
        predicted: ``(examples,)`` labels.
        labels: known labels; the order of ``by_label``. A label found only in the data counts too, after these.
    """
    assert len(gold) == len(predicted), f"{len(gold)} gold labels, {len(predicted)} predicted"
    names = list(dict.fromkeys([*labels, *gold, *predicted]))
    counts = label_counts(gold, predicted, names, np.arange(len(gold)), len(gold))
    return Statistics(counts, label_metrics, lambda sums: report(names, sums))


def label_counts(
    gold: Sequence[str],
    predicted: Sequence[str],
    names: list[str],
    rows: NDArray[np.intp],
    num_rows: int,
) -> FloatArray:
    """Items ``(items,)`` with gold and predicted labels, counted by row: ``(num_rows, 3 * labels)``.

    Args:
        names: ``(labels,)`` distinct, all that occur.
        rows: ``(items,)`` the row of each item: the example itself, or the sentence of a word.

    Returns:
        For each row and label the number of items with this gold label, with this prediction, with both.
    """
    index = {name: i for i, name in enumerate(names)}
    gold_index = np.fromiter((index[name] for name in gold), np.intp, len(gold))
    predicted_index = np.fromiter((index[name] for name in predicted), np.intp, len(predicted))
    hit = gold_index == predicted_index
    shape = (num_rows, len(names))
    counts = np.zeros((num_rows, 3 * len(names)))
    for part, (where, label) in enumerate(
        [(rows, gold_index), (rows, predicted_index), (rows[hit], gold_index[hit])]
    ):
        cells = np.bincount(where * len(names) + label, minlength=num_rows * len(names))
        counts[:, part * len(names) : (part + 1) * len(names)] = cells.reshape(shape)
    return counts


def label_metrics(sums: FloatArray) -> dict[str, FloatArray]:
    """Sums of ``label_counts``, ``(..., 3 * labels)``, to ``accuracy``, ``f1_macro`` and ``mcc``, each ``(...)``."""
    gold, predicted, hits = np.split(sums, 3, axis=-1)
    total, correct = gold.sum(axis=-1), hits.sum(axis=-1)
    occurs = np.asarray((gold + predicted > 0).sum(axis=-1), np.float64)
    covariance = correct * total - (gold * predicted).sum(axis=-1)
    gold_variance = total**2 - (gold**2).sum(axis=-1)
    predicted_variance = total**2 - (predicted**2).sum(axis=-1)
    return {
        "accuracy": ratio(correct, total),
        "f1_macro": ratio(ratio(2 * hits, gold + predicted).sum(axis=-1), occurs),
        "mcc": ratio(covariance, np.sqrt(gold_variance * predicted_variance)),
    }


def report(names: list[str], sums: FloatArray) -> dict[str, dict[str, float]]:
    """Sums of ``label_counts``, ``(3 * labels,)``, to precision, recall, F1 and support of each label."""
    gold, predicted, hits = np.split(sums, 3)
    return label_report(names, hits, predicted, gold)
