"""Systems on the same examples: statistics scored together, differences tested pair by pair."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lmkit.errors import LmkitError, suggest
from lmkit.metrics.comparison import Difference, holm, mcnemar, paired_bootstrap, permutation_test
from lmkit.metrics.custom import Examples, Module, custom_statistics
from lmkit.metrics.statistics import Statistics, ratio
from lmkit.records import Record, Verdict, finite
from lmkit.tasks.base import Scored, Task
from lmkit.tasks.direction import is_better

Method = Literal["bootstrap", "permutation"]
Records = Sequence[Record]


@dataclass(frozen=True)
class Test:
    """How a comparison is made; ``resamples`` counts exchanges too."""

    __test__ = False  # not one of pytest's

    method: Method = "bootstrap"
    confidence: float = 0.95
    resamples: int = 10_000
    seed: int = 13


def score_together(
    task: Task | Scored, systems: Sequence[Sequence[Records]], metric: str
) -> list[list[Statistics]]:
    """Return the statistics of each run of each system, with the same columns for all.

    Args:
        systems: the runs of each system, the lines of predictions.jsonl of each run; all over the same examples.

    Raises:
        LmkitError: these predictions have no such metric.
    """
    runs = [run for system in systems for run in system]
    examples = len(runs[0])
    records = [record for run in runs for record in run]
    together = task.problem.score(task.facts, records)
    metrics = list(together.values())
    if metric not in metrics:
        if metric != "loss" or not all("nll" in record and "items" in record for record in records):
            raise LmkitError(
                f"{task.problem.name} has no metric {metric!r}",
                place="--metric",
                remedy=suggest(metric, metrics),
            )
        together = loss_statistics(records)
    starts = range(0, len(records), examples)
    parts = iter([together.select(np.arange(start, start + examples)) for start in starts])
    return [[next(parts) for _ in system] for system in systems]


def score_by_module(
    task: Task | Scored, systems: Sequence[Sequence[Records]], metric: str, chosen: Module
) -> list[list[Statistics]]:
    """Return the same of a metric that ``eval.metrics`` brought along."""
    return [
        [custom_statistics(metric, chosen, examples_of(run, task)) for run in system]
        for system in systems
    ]


def examples_of(records: Records, task: Task | Scored) -> Examples:
    """Return what a module of the evaluate library is handed."""
    return Examples(
        [record["prediction"] for record in records],
        [record["gold"] for record in records],
        labels=task.facts.get("labels", ()),
        trust_remote_code=task.recipe.model.trust_remote_code,
    )


def loss_statistics(records: Records) -> Statistics:
    """Return the mean loss over the labels that count, in nats, as statistics."""
    counts = np.array([[record["nll"], record["items"]] for record in records], np.float64).reshape(
        -1, 2
    )
    return Statistics(
        counts, lambda sums: {"loss": ratio(sums[..., 0], sums[..., 1], undefined=math.nan)}
    )


@dataclass(frozen=True)
class Pair:
    """Two systems by their numbers, and which one is better."""

    first: int
    second: int
    verdict: Verdict


def compare_pair(
    a: Sequence[Statistics], b: Sequence[Statistics], metric: str, test: Test
) -> Verdict:
    """Compare one system with another.

    The interval is the paired bootstrap's; so is the p-value, unless the method is ``permutation``.
    """
    difference = paired_bootstrap(
        a, b, metric, confidence=test.confidence, resamples=test.resamples, seed=test.seed
    )
    p_value = difference.p_value
    if test.method == "permutation":
        p_value = permutation_test(a[0], b[0], metric, resamples=test.resamples, seed=test.seed)
    exact = None
    if metric == "accuracy" and len(a) == len(b) == 1:
        exact = mcnemar(a[0], b[0])
    return Verdict(
        metric=metric,
        a=finite(difference.a),
        b=finite(difference.b),
        difference=finite(difference.difference),
        low=finite(difference.low),
        high=finite(difference.high),
        p_value=p_value,
        verdict=judge(metric, difference, p_value, test.confidence),
        mcnemar_p_value=exact,
    )


def judge(metric: str, difference: Difference, p_value: float, confidence: float) -> str:
    """Say ``a is better``, ``b is better`` or ``not distinguishable``; for losses and errors less is better."""
    if not p_value <= 1 - confidence + 1e-12 or difference.a == difference.b:
        return "not distinguishable"
    return "b is better" if is_better(metric, difference.b, difference.a) else "a is better"


def compare_all(systems: Sequence[Sequence[Statistics]], metric: str, test: Test) -> list[Pair]:
    """Compare every pair of systems; of several pairs, the verdict allows for all that were made.

    ``p_holm`` is the p-value after Holm's correction; the intervals are each pair's own.
    """
    pairs = [
        Pair(first, second, compare_pair(systems[first], systems[second], metric, test))
        for first, second in itertools.combinations(range(len(systems)), 2)
    ]
    if len(pairs) < 2:
        return pairs
    adjusted = holm([pair.verdict.p_value for pair in pairs])
    return [
        replace(pair, verdict=_allow_for_others(pair.verdict, p_holm, test.confidence))
        for pair, p_holm in zip(pairs, adjusted, strict=True)
    ]


def _allow_for_others(verdict: Verdict, p_holm: float, confidence: float) -> Verdict:
    is_clear = p_holm <= 1 - confidence + 1e-12
    text = verdict.verdict if is_clear else "not distinguishable"
    return replace(verdict, p_holm=p_holm, verdict=text)
