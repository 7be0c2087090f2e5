"""What makes a result doubtful: rows seen in training, one answer to all rows, labels never predicted, gold that looks wrong."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lmkit import console
from lmkit.data.rows import Rows
from lmkit.evaluation.calibration import probabilities_of
from lmkit.evaluation.overlap import find_overlap
from lmkit.evaluation.records import Kind, Record, text_of
from lmkit.metrics.statistics import Statistics
from lmkit.metrics.tagging import type_of
from lmkit.tasks.base import Task

SHOWN = 80  # characters of an answer
FEW = 20  # rows, of which fewer may get one answer by chance
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
        for field in task.fields_of(task.recipe, task.facts, None)
        if not field.gold
    }
    names = list(kinds)

    def text(row: Any) -> str:
        found = [" ".join(row[name]) if kinds[name] == "words" else row[name] for name in names]
        return "\n".join(part for part in found if part)

    found = find_overlap(map(text_of, records), lambda: (text(row) for row in _all(train, names)))
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


def never_predicted(records: Sequence[Record], kind: Kind) -> list[str]:
    """Labels that the gold has and the model never predicts; of entities their types."""
    if kind not in ("label", "labels", "entities", "tags"):
        return []

    def names(side: str) -> set[str]:
        values = (record[side] for record in records)
        found = {tag for value in values for tag in ([value] if isinstance(value, str) else value)}
        return {type_of(tag) for tag in found if tag != "O"} if kind == "entities" else found

    return sorted(names("gold") - names("prediction"))


def always_predicted(records: Sequence[Record], kind: Kind) -> str | None:
    """The one prediction that all rows (words, where words are tagged) have though their gold differs, as JSON.

    Numbers are taken for one where they differ by less than a thousandth of what the gold does, its highest and lowest
    twentieth aside (unless all but these are one number): a regressor that learned the mean alone still differs in the last digits. None where predictions
    differ, or no gold does, and of few rows.
    """
    if kind == "language" or len(records) < FEW:
        return None

    def values(side: str) -> Iterator[Any]:
        found = (record[side] for record in records)
        if kind == "labels":
            return (sorted(value) for value in found)
        return itertools.chain.from_iterable(found) if kind in ("entities", "tags") else found

    first, gold = next(values("prediction"), None), next(values("gold"), None)
    if first is None or all(value == gold for value in values("gold")):
        return None
    if kind == "number":
        predicted, numbers = (np.fromiter(values(side), float) for side in ("prediction", "gold"))
        low, high = np.quantile(numbers, [0.05, 0.95])
        spread = (high - low) or np.ptp(numbers)
        is_one = np.isfinite(predicted).all() and np.ptp(predicted) <= spread / 1000
        return f"{np.median(predicted):.4g}" if is_one else None
    if any(value != first for value in values("prediction")):
        return None
    shown = json.dumps(first, ensure_ascii=False)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]} ..."


def warn_of_always_predicted(answer: str | None, *, split: str, training: bool) -> None:
    """Say it, also while there is time to stop (``training``); nothing where there is none.

    A learning rate that is too high ends like this, but so begins any training where one answer is the commonest.
    """
    if answer is None:
        return
    remedy = "if this stays so, lower train.learning_rate or train for longer"
    if not training:
        remedy = "a lower train.learning_rate or longer training may help"
    console.warn(f"data.{split}: every answer is {answer}, though the gold differs; {remedy}")


def doubtful_gold(records: Sequence[Record], kind: Kind) -> list[dict[str, Any]]:
    """Gold that the model disagrees with, being surer than it usually is; the surest first.

    Confident learning (Northcutt et al. 2021): a label's threshold is the mean probability that the model gives it where
    it is the gold; a row is doubtful where another label than the gold exceeds its own threshold, ranked by that label's
    probability less that of the gold. Of words the tagger's score is all that is known, so the threshold of a tag is its
    mean score where it is right, and the rank the score. The model may also be wrong: these are the rows to look at first.
    """
    if kind == "label" and "probabilities" in records[0]:
        return _doubtful_labels(records)
    if kind in ("entities", "tags"):
        return _doubtful_words(records)
    return []


def _doubtful_labels(records: Sequence[Record]) -> list[dict[str, Any]]:
    table, gold = probabilities_of(records)
    threshold = np.array(
        [
            table[gold == label, label].mean() if (gold == label).any() else np.inf
            for label in range(table.shape[1])
        ]
    )
    above = np.where(table >= threshold, table, -np.inf)
    likely, rows = above.argmax(1), np.arange(len(gold))
    doubtful = np.flatnonzero(
        (likely != gold) & np.isfinite(above.max(1)) & (table.argmax(1) == likely)
    )
    margin = table[rows, likely] - table[rows, gold]
    return [
        {
            "id": records[row]["id"],
            "gold": records[row]["gold"],
            "prediction": records[row]["prediction"],
            "score": float(table[row, likely[row]]),
            "margin": float(margin[row]),
        }
        for row in doubtful[np.argsort(-margin[doubtful], kind="stable")].tolist()
    ]


def _doubtful_words(records: Sequence[Record]) -> list[dict[str, Any]]:
    right: dict[str, list[float]] = {}
    for record in records:
        for gold, tag, score in zip(
            record["gold"], record["prediction"], record["score"], strict=True
        ):
            if gold == tag:
                right.setdefault(tag, []).append(score)
    threshold = {tag: sum(scores) / len(scores) for tag, scores in right.items()}
    found = [
        {
            "id": record["id"],
            "word": word,
            "text": record["tokens"][word],
            "gold": gold,
            "prediction": tag,
            "score": score,
        }
        for record in records
        for word, (gold, tag, score) in enumerate(
            zip(record["gold"], record["prediction"], record["score"], strict=True)
        )
        if gold != tag and score >= threshold.get(tag, 2.0)
    ]
    return sorted(found, key=lambda entry: -entry["score"])


def say(found: dict[str, Any], *, split: str, metric: str, value: float | None) -> None:
    """The suspicions as lines of warning; nothing where there are none."""
    overlap = found["overlap"]
    if overlap["checked"] and (overlap["exact"] or overlap["near"]):
        text = f"data.{split}: {overlap['exact']} rows also stand in training, {overlap['near']} more nearly so"
        if clean := overlap.get("clean"):
            without = clean["metrics"][metric]["value"]
            shown = ["-" if number is None else f"{number:.4f}" for number in (without, value)]
            text += f"; {metric} without them: {shown[0]} ({clean['examples']} rows), with them: {shown[1]}"
        console.warn(text)
    warn_of_always_predicted(found["always_predicted"], split=split, training=False)
    if found["never_predicted"]:
        console.warn(f"labels that the model never predicts: {', '.join(found['never_predicted'])}")
    if count := found["gold"]["count"]:
        what = "words" if "word" in found["gold"]["rows"][0] else "rows"
        console.warn(
            f"gold that may be wrong: {count} {what} on which the model confidently says otherwise; see report.html"
        )
