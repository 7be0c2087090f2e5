"""Where a model fails and whether its numbers can be believed: the content of analysis.json."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmkit.data.encode import Encoded
from lmkit.data.rows import Rows
from lmkit.evaluation import suspicions
from lmkit.evaluation.calibration import calibration, temperature_scaling
from lmkit.evaluation.mistakes import confusion
from lmkit.evaluation.slices import slice_metrics
from lmkit.metrics.intervals import bootstrap_intervals
from lmkit.metrics.statistics import Statistics
from lmkit.recipe.schema import Eval
from lmkit.records import Record
from lmkit.run import Run
from lmkit.tasks.answers import answer_of
from lmkit.tasks.base import Task

WORST = 100


@dataclass(frozen=True)
class Background:
    """What an evaluation knows besides the model and the split.

    Args:
        train: the rows it was trained on; or why they cannot be compared with.
        baseline: rows that baselines are learned from; None: no baselines.
        fitted_on: predictions on other rows, to fit a temperature on; None: no temperature.
        run: where the model comes from, if from a run.
        data: the files of the split: ``{"path", "rows", "sha256", "bytes"}``.
    """

    train: Rows | str = "the training data is not known"
    fitted_on: Sequence[Record] | None = None
    run: Run | None = None
    data: list[dict[str, Any]] = field(default_factory=list)
    baseline: Rows | None = None


def analyse(
    records: Sequence[Record],
    statistics: Statistics,
    encoded: Encoded,
    task: Task,
    options: Eval,
    background: Background,
) -> dict[str, Any]:
    """Slices, confusion, entity errors, calibration, worst examples and suspicions of a split.

    What a task has no notion of is left out. Every metric has its interval, made as those of metrics.json.
    """

    def measured(part: Statistics) -> dict[str, Any]:
        intervals = bootstrap_intervals(
            part,
            confidence=options.confidence,
            resamples=options.resamples,
            seed=task.recipe.seed,
            kind=options.interval,
        )
        return {name: interval.to_json() for name, interval in intervals.items()}

    answer = answer_of(task)
    found: dict[str, Any] = {
        "kind": answer.kind,
        "slices": slice_metrics(options.slices, records, statistics, encoded, task, measured),
    }
    if counts := confusion(records, answer, task.facts.get("labels", ())):
        found["confusion"] = counts
    if (errors := answer.errors(records)) is not None:
        found["entity_errors"] = errors
    if curve := calibration(records, answer):
        found["calibration"] = curve
        if background.fitted_on is not None:
            found["calibration"]["temperature"] = temperature_scaling(records, background.fitted_on)
    found["worst"] = worst(records)
    doubts = [doubt.to_json() for doubt in answer.doubtful(records)]
    found["suspicions"] = {
        "overlap": suspicions.overlap_with_training(
            records, background.train, task, statistics, measured
        ),
        "always_predicted": answer.only_decision(records),
        "never_predicted": suspicions.never_predicted(records, answer),
        "gold": {"count": len(doubts), "rows": doubts[: suspicions.MOST]},
    }
    result: dict[str, Any] = finite_all(found)
    return result


def worst(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The rows with the highest loss per label that counts, the worst first."""
    losses = ((record.loss, -number) for number, record in enumerate(records))
    highest = heapq.nlargest(
        WORST, ((loss, number) for loss, number in losses if not math.isnan(loss))
    )
    return [{"id": records[-number]["id"], "loss": loss} for loss, number in highest]


def finite_all(value: Any) -> Any:
    """JSON has no inf and no nan: null stands for what cannot be said, at any depth."""
    if isinstance(value, dict):
        return {key: finite_all(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite_all(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
