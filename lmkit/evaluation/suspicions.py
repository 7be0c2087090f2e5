"""What makes a result doubtful: rows seen in training, one answer to all rows, labels never predicted, gold that looks wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmkit import console
from lmkit.data.rows import Rows
from lmkit.evaluation.overlap import find_overlap
from lmkit.metrics.statistics import Statistics
from lmkit.records import Record
from lmkit.tasks.answers import Answer, answer_of
from lmkit.tasks.base import Task

MOST = 100  # rows that are listed of each suspicion; all are counted


def overlap_with_training(
    records: Sequence[Record],
    train: Rows | str,
    task: Task,
    statistics: Statistics,
    measured: Callable[[Statistics], dict[str, Any]],
) -> dict[str, Any]:
    """How many rows also stand in training, which, and the metrics of the others.

    Args:
        train: the training rows; or why there are none to compare with.
        measured: the metrics of some rows, as they stand in metrics.json.
    """
    if isinstance(train, str):
        return {"checked": False, "reason": train}
    kinds = {
        field.name: field.kind
        for field in task.problem.fields(task.recipe, task.facts)
        if not field.gold
    }
    names = list(kinds)

    def text(row: Any) -> str:
        found = [" ".join(row[name]) if kinds[name] == "words" else row[name] for name in names]
        return "\n".join(part for part in found if part)

    found = find_overlap(
        map(answer_of(task).text, records), lambda: (text(row) for row in _all(train, names))
    )
    seen = {*found.exact, *found.near}
    result: dict[str, Any] = {
        "checked": True,
        "train_rows": found.train_rows,
        "searched_for_near": found.searched,
        "exact": len(found.exact),
        "near": len(found.near),
        "ids": [records[row]["id"] for row in sorted(seen)],
        "near_examples": [
            {"id": records[row]["id"], "train_row": other, "similarity": round(similarity, 3)}
            for row, (other, similarity) in sorted(found.near.items())[:MOST]
        ],
    }
    if seen and len(seen) < len(records):
        clean = np.array([row for row in range(len(records)) if row not in seen], np.intp)
        result["clean"] = {"examples": len(clean), "metrics": measured(statistics.select(clean))}
    return result


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
    found: dict[str, Any], answer: Answer, *, split: str, metric: str, value: float | None
) -> None:
    """The suspicions as lines of warning; nothing where there are none."""
    overlap = found["overlap"]
    if overlap["checked"] and (overlap["exact"] or overlap["near"]):
        text = f"data.{split}: {overlap['exact']} rows also stand in training, {overlap['near']} more nearly so"
        if clean := overlap.get("clean"):
            without = clean["metrics"][metric]["value"]
            shown = ["-" if number is None else f"{number:.4f}" for number in (without, value)]
            text += f"; {metric} without them: {shown[0]} ({clean['examples']} rows), with them: {shown[1]}"
        console.warn(text)
    warn_of_one_decision(found["always_predicted"], split=split, training=False)
    if found["never_predicted"]:
        console.warn(f"labels that the model never predicts: {', '.join(found['never_predicted'])}")
    if count := found["gold"]["count"]:
        console.warn(
            f"gold that may be wrong: {count} {answer.doubt_unit} on which the model confidently says otherwise; see report.html"
        )
