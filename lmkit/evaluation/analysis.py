"""Where a model fails and whether its numbers can be believed: the content of analysis.json."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lmkit.data.encode import Encoded
from lmkit.data.rows import Rows
from lmkit.evaluation.calibration import Calibration, calibration, temperature_scaling
from lmkit.evaluation.mistakes import Confusion, confusion
from lmkit.evaluation.slices import Slice, slice_metrics
from lmkit.evaluation.suspicions import Suspicions, find_suspicions
from lmkit.metrics.entities import ErrorCounts
from lmkit.metrics.intervals import bootstrap_intervals
from lmkit.metrics.statistics import Statistics
from lmkit.recipe.schema import Eval
from lmkit.records import DataFile, Interval, Record, Stored
from lmkit.run import Run
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
        data: the files of the split.
    """

    train: Rows | str = "the training data is not known"
    fitted_on: Sequence[Record] | None = None
    run: Run | None = None
    data: list[DataFile] = field(default_factory=list)
    baseline: Rows | None = None


@dataclass(frozen=True)
class Worst(Stored):
    """A row with a high loss per label that counts."""

    id: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Analysis(Stored):
    """The content of analysis.json; what an answer has no notion of is absent."""

    kind: str
    slices: Mapping[str, list[Slice]]
    confusion: Confusion | None = None
    entity_errors: ErrorCounts | None = None
    calibration: Calibration | None = None
    worst: list[Worst]
    suspicions: Suspicions


def analyse(
    records: Sequence[Record],
    statistics: Statistics,
    encoded: Encoded,
    task: Task,
    options: Eval,
    background: Background,
) -> Analysis:
    """Find slices, confusion, kinds of errors, calibration, worst examples and suspicions of a split.

    Every metric has its interval, made as those of metrics.json.
    """

    def measured(rows: NDArray[np.intp]) -> Mapping[str, Interval]:
        return bootstrap_intervals(
            statistics.select(rows),
            confidence=options.confidence,
            resamples=options.resamples,
            seed=task.recipe.seed,
            kind=options.interval,
        )

    answer = task.answer
    curve = calibration(records, answer)
    if curve is not None and background.fitted_on is not None:
        scaling = temperature_scaling(records, background.fitted_on)
        curve = replace(curve, temperature=scaling)
    return Analysis(
        kind=answer.kind,
        slices=slice_metrics(options.slices, records, encoded, task, measured),
        confusion=confusion(records, answer, task.facts.get("labels", ())),
        entity_errors=answer.errors(records),
        calibration=curve,
        worst=worst(records),
        suspicions=find_suspicions(records, background.train, task, measured),
    )


def worst(records: Sequence[Record]) -> list[Worst]:
    """Return the rows with the highest loss per label that counts, the worst first."""
    losses = ((record.loss, -number) for number, record in enumerate(records))
    counted = ((loss, number) for loss, number in losses if not math.isnan(loss))
    return [Worst(records[-number]["id"], loss) for loss, number in heapq.nlargest(WORST, counted)]
