"""Several labels per example: exact matches, and F1 over labels, decisions and examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmkit.metrics.classification import report
from lmkit.metrics.statistics import FloatArray, Statistics, ratio


def multi_label_statistics(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str]
) -> Statistics:
    """``accuracy`` (all labels of an example right), ``f1_macro``, ``f1_micro``, ``f1_samples`` and ``mcc`` (-1..1).

    Equal to scikit-learn's on indicator matrices, with two choices: ``f1_macro`` is over the labels that occur in gold
    or predictions, and an example without labels, of which none are predicted, has an F1 of 1 in ``f1_samples``
    (``zero_division=1``; nothing was done wrong). ``mcc`` is over all decisions, one per example and label.

    Args:
        gold, predicted: ``(examples,)`` lists of labels without repetition.
        labels: known labels; one found only in the data counts too, after these.
    """
    assert len(gold) == len(predicted), f"{len(gold)} gold lists, {len(predicted)} predicted"
    names = list(
        dict.fromkeys(
            [*labels, *(label for rows in (gold, predicted) for row in rows for label in row)]
        )
    )
    index = {name: number for number, name in enumerate(names)}
    counts = np.zeros((3, len(gold), len(names)))
    for part, rows in enumerate((gold, predicted)):
        for number, row in enumerate(rows):
            counts[part, number, [index[label] for label in row]] = 1
    counts[2] = counts[0] * counts[1]
    sizes = counts.sum(axis=2)
    exact = (sizes[0] == sizes[2]) & (sizes[1] == sizes[2])
    f1 = ratio(2 * sizes[2], sizes[0] + sizes[1], undefined=1.0)
    columns = [*counts, exact[:, None], f1[:, None], np.ones((len(gold), 1))]

    def metrics(sums: FloatArray) -> dict[str, FloatArray]:
        by_label, (exact_sum, f1_sum, examples) = sums[..., :-3], np.moveaxis(sums[..., -3:], -1, 0)
        actual, guessed, hits = np.split(by_label, 3, axis=-1)
        actual_all, guessed_all, hits_all = (part.sum(axis=-1) for part in (actual, guessed, hits))
        decisions = examples * len(names)
        covariance = hits_all * decisions - actual_all * guessed_all
        spread = actual_all * (decisions - actual_all) * guessed_all * (decisions - guessed_all)
        return {
            "accuracy": ratio(exact_sum, examples),
            "f1_macro": ratio(
                ratio(2 * hits, actual + guessed).sum(axis=-1),
                np.asarray((actual + guessed > 0).sum(axis=-1), np.float64),
            ),
            "f1_micro": ratio(2 * hits_all, actual_all + guessed_all),
            "f1_samples": ratio(f1_sum, examples),
            "mcc": ratio(covariance, np.sqrt(spread)),
        }

    return Statistics(
        np.concatenate(columns, axis=1), metrics, lambda sums: report(names, sums[:-3])
    )
