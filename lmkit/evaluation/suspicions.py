"""What makes a result doubtful: rows seen in training, one answer to all rows, labels never predicted, gold that looks wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmkit import console
from lmkit.data.rows import Rows
from lmkit.evaluation.overlap import find_overlap
from lmkit.records import Interval, Record, Stored
from lmkit.tasks.answers import Answer, Doubt
from lmkit.tasks.base import Task

MOST = 100  # rows that are listed of each suspicion; all are counted


@dataclass(frozen=True)
class NearTwin(Stored):
    """A row that nearly stands in training, with the number of the training row."""

    id: int
    train_row: int
    similarity: float


@dataclass(frozen=True)
class Clean(Stored):
    """The metrics of the rows that do not stand in training."""

    examples: int
    metrics: Mapping[str, Interval]


@dataclass(frozen=True)
class Overlap(Stored):
    """Rows that also stand in training.

    Args:
        checked: False where they were not looked for; ``reason`` says why, and the rest is absent.
        searched_for_near: training rows among which near ones were looked for.
        exact, near: how many rows. ids: of both. near_examples: some of the near ones.
        clean: the other rows, where there are both.
    """

    checked: bool
    reason: str | None = None
    train_rows: int | None = None
    searched_for_near: int | None = None
    exact: int | None = None
    near: int | None = None
    ids: list[int] | None = None
    near_examples: list[NearTwin] | None = None
    clean: Clean | None = None


@dataclass(frozen=True)
class DoubtfulGold(Stored):
    """How much gold is doubtful, and the surest of it."""

    count: int
    rows: list[Doubt]


@dataclass(frozen=True)
class Suspicions(Stored):
    """What makes a result doubtful.

    Args:
        always_predicted: the one decision for all rows, as JSON; None: there are several.
        never_predicted: labels that the gold alone has.
    """

    overlap: Overlap
    always_predicted: str | None
    never_predicted: list[str]
    gold: DoubtfulGold


def find_suspicions(
    records: Sequence[Record],
    train: Rows | str,
    task: Task,
    measured: Callable[[NDArray[np.intp]], Mapping[str, Interval]],
) -> Suspicions:
    """Look for what makes a result doubtful.

    Args:
        train: the training rows; or why there are none to compare with.
        measured: the metrics of some rows.
    """
    answer = task.answer
    doubts = answer.doubtful(records)
    return Suspicions(
        overlap_with_training(records, train, task, measured),
        answer.only_decision(records),
        never_predicted(records, answer),
        DoubtfulGold(len(doubts), doubts[:MOST]),
    )


def overlap_with_training(
    records: Sequence[Record],
    train: Rows | str,
    task: Task,
    measured: Callable[[NDArray[np.intp]], Mapping[str, Interval]],
) -> Overlap:
    """Find the rows that also stand in training, and measure the others."""
    if isinstance(train, str):
        return Overlap(checked=False, reason=train)
    kinds = {
        field.name: field.kind
        for field in task.problem.fields(task.recipe, task.facts)
        if not field.gold
    }
    names = list(kinds)

    def text(row: Mapping[str, Any]) -> str:
        parts = [" ".join(row[name]) if kinds[name] == "words" else row[name] for name in names]
        return "\n".join(part for part in parts if part)

    twins = find_overlap(
        map(task.answer.text, records), lambda: (text(row) for row in _all(train, names))
    )
    seen = {*twins.exact, *twins.near}
    clean = None
    if seen and len(seen) < len(records):
        rows = np.array([row for row in range(len(records)) if row not in seen], np.intp)
        clean = Clean(len(rows), measured(rows))
    return Overlap(
        checked=True,
        train_rows=twins.train_rows,
        searched_for_near=twins.searched,
        exact=len(twins.exact),
        near=len(twins.near),
        ids=[records[row]["id"] for row in sorted(seen)],
        near_examples=[
            NearTwin(records[row]["id"], train_row, round(similarity, 3))
            for row, (train_row, similarity) in sorted(twins.near.items())[:MOST]
        ],
        clean=clean,
    )


def _all(train: Rows, names: list[str]) -> Any:
    return (row for batch in train.batches(names=names) for row in batch)


def never_predicted(records: Sequence[Record], answer: Answer) -> list[str]:
    """Return labels that the gold has and the model never predicts."""
    gold: set[str] = set()
    predicted: set[str] = set()
    for record in records:
        gold |= answer.label_names(record.get("gold"))
        predicted |= answer.label_names(record.get("prediction"))
    return sorted(gold - predicted)


def warn_of_one_decision(decision: str | None, *, split: str, training: bool) -> None:
    """Say it, also while there is time to stop (``training``); nothing where there is none.

    A learning rate that is too high ends like this, but so begins any training where one answer is the commonest.
    """
    if decision is None:
        return
    remedy = "if this stays so, lower train.learning_rate or train for longer"
    if not training:
        remedy = "a lower train.learning_rate or longer training may help"
    console.warn(f"data.{split}: every answer is {decision}, though the gold differs; {remedy}")


def say(
    suspicions: Suspicions, answer: Answer, *, split: str, metric: str, value: float | None
) -> None:
    """Say the suspicions as lines of warning; nothing where there are none.

    Args:
        value: of the headline metric on all rows.
    """
    overlap = suspicions.overlap
    if overlap.exact or overlap.near:
        text = f"data.{split}: {overlap.exact} rows also stand in training, {overlap.near} more nearly so"
        if overlap.clean is not None:
            without = overlap.clean.metrics[metric].value
            shown = ["-" if number is None else f"{number:.4f}" for number in (without, value)]
            text += f"; {metric} without them: {shown[0]} ({overlap.clean.examples} rows), with them: {shown[1]}"
        console.warn(text)
    warn_of_one_decision(suspicions.always_predicted, split=split, training=False)
    if names := suspicions.never_predicted:
        console.warn(f"labels that the model never predicts: {', '.join(names)}")
    if count := suspicions.gold.count:
        console.warn(
            f"gold that may be wrong: {count} {answer.doubt_unit} on which the model confidently says otherwise; see report.html"
        )
