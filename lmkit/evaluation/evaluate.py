"""What predictions are worth: the metrics of a split with their intervals, written down with analysis and report."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmkit import console
from lmkit.data.encode import Encoded
from lmkit.data.splits import Splits
from lmkit.evaluation import suspicions
from lmkit.evaluation.analysis import Background, analyse
from lmkit.evaluation.baselines import compare_baselines
from lmkit.evaluation.compare import examples_of
from lmkit.evaluation.forward import Forward
from lmkit.evaluation.records import store
from lmkit.metrics.intervals import bootstrap_intervals
from lmkit.metrics.statistics import Statistics
from lmkit.recipe.schema import Eval
from lmkit.records import Metrics, Record
from lmkit.run import atomic_directory, write_rejects
from lmkit.tasks.base import Task
from lmkit.tasks.registry import headline


@dataclass(frozen=True)
class Evaluated:
    """What a model does on a split.

    Args:
        statistics: per row; metrics and intervals follow from them.
        loss: mean over the labels that count, in nats, whatever the batches.
        seconds: of predicting.
    """

    records: Sequence[Record]
    statistics: Statistics
    loss: float
    seconds: float

    @property
    def examples(self) -> int:
        return len(self.records)

    def value(self, metric: str) -> float:
        return self.loss if metric == "loss" else self.statistics.values()[metric]


def measure(records: Sequence[Record], task: Task, *, seconds: float) -> Evaluated:
    """Compute statistics and token-weighted loss of records."""
    nll, items = 0.0, 0
    for record in records:
        nll, items = nll + record["nll"], items + record["items"]
    loss = nll / items if items else math.nan
    return Evaluated(records, task.problem.score(task.facts, records), loss, seconds)


def validate(forward: Forward, encoded: Encoded, *, metric: str) -> float:
    """Return one metric of a split, the same on every rank: what chooses the best checkpoint."""
    return forward.processes.first_rank_says(_validate(forward, encoded, metric))


def _validate(forward: Forward, encoded: Encoded, metric: str) -> float:
    if metric == "loss":
        return forward.mean_loss(encoded)
    task = forward.task
    with tempfile.TemporaryDirectory(prefix="lmkit-") as folder:
        records = store(forward.predictions(encoded), Path(folder) / "predictions.jsonl")
        if forward.rank:
            return 0.0
        if not task.problem.tunes(
            task.recipe, task.facts
        ):  # else answers are not yet those the model will give
            decision = task.answer.only_decision(records)
            suspicions.warn_of_one_decision(decision, split="validation", training=True)
        return measure(records, task, seconds=0).value(metric)


def metrics_of(
    evaluated: Evaluated, task: Task, *, split: str, options: Eval, seed: int
) -> Metrics:
    """Return the metrics of a split with their intervals."""
    statistics = evaluated.statistics
    made = f"bootstrap:{options.interval}|resamples:{options.resamples}|seed:{seed}"
    return Metrics(
        task=task.name,
        split=split,
        examples=evaluated.examples,
        loss=evaluated.loss,
        confidence=options.confidence,
        metrics=bootstrap_intervals(
            statistics,
            confidence=options.confidence,
            resamples=options.resamples,
            seed=seed,
            kind=options.interval,
        ),
        signature=" ".join(filter(None, [task.signature or statistics.signature, made])),
        seconds=round(evaluated.seconds, 3),
        by_label={
            label: row | {"support": int(row["support"])}
            for label, row in statistics.label_values().items()
        },
    )


def with_further_metrics(
    metrics: Metrics, records: Sequence[Record], task: Task, options: Eval
) -> Metrics:
    """Add what ``eval.metrics`` names, and the module behind each."""
    from lmkit.metrics.custom import custom_metrics

    further = custom_metrics(
        options.metrics,
        examples_of(records, task),
        taken=list(metrics.metrics),
        confidence=options.confidence,
        resamples=options.resamples,
        seed=task.recipe.seed,
    )
    intervals = {name: interval for name, (interval, _) in further.items()}
    modules = {name: vars(module) for name, (_, module) in further.items()}
    return replace(metrics, metrics={**metrics.metrics, **intervals}, modules=modules)


def evaluate_split(
    forward: Forward,
    encoded: Encoded,
    *,
    split: str,
    options: Eval,
    folder: Path,
    background: Background | None = None,
) -> Metrics | None:
    """Predict, measure and analyse; write ``metrics.json``, ``predictions.jsonl``, ``analysis.json`` and ``report.html``.

    And ``rejects.jsonl`` where rows were left out. The folder is whole or absent.

    Returns:
        The content of metrics.json on the first rank, None on the others.
    """
    from lmkit.evaluation.report.page import report

    task, background = forward.task, background or Background()
    started = time.perf_counter()
    predicted = forward.predictions(encoded)
    if forward.rank:
        deque(predicted, maxlen=0)
        return None
    with atomic_directory(folder) as aside:
        records = store(predicted, aside / "predictions.jsonl")
        evaluated = measure(records, task, seconds=time.perf_counter() - started)
        metrics = metrics_of(evaluated, task, split=split, options=options, seed=task.recipe.seed)
        rejected = Splits({split: encoded.rows}, task.facts).rejected
        write_rejects(aside / "rejects.jsonl", rejected)
        metrics = replace(metrics, cut_rows=encoded.cut, rejected_rows=len(rejected))
        if options.metrics:
            metrics = with_further_metrics(metrics, records, task, options)
        if background.baseline is not None:
            scores = compare_baselines(task, background.baseline, encoded, records, options)
            metrics = replace(metrics, baselines=scores)
        (aside / "metrics.json").write_text(_json(metrics.to_json(), indent=2), encoding="utf-8")
        analysis = analyse(records, evaluated.statistics, encoded, task, options, background)
        (aside / "analysis.json").write_text(_json(analysis.to_json(), indent=1), encoding="utf-8")
        page = report(metrics, analysis, records, task, background)
        (aside / "report.html").write_text(page, encoding="utf-8")
    metric = headline(task.name, metrics.metrics)
    value = metrics.metrics[metric].value
    suspicions.say(analysis.suspicions, task.answer, split=split, metric=metric, value=value)
    return metrics


def _json(value: object, *, indent: int) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent) + "\n"


def metrics_table(metrics: Metrics) -> str:
    """Show the metrics with their intervals, for people."""
    level = f"{metrics.confidence * 100:g} % interval"
    rows = []
    for name, interval in metrics.metrics.items():
        bounds = f"{_shown(interval.low)} ... {_shown(interval.high)}"
        rows.append([name, _shown(interval.value), bounds if interval.low is not None else "-"])
    if "loss" not in metrics.metrics:
        rows.append(["loss", _shown(metrics.loss), ""])
    return console.table(["metric", "value", level], rows)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
