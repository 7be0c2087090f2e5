"""What makes a result doubtful, and that it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmkit.data.check.columns import Roles
from lmkit.data.readers import ReadOptions
from lmkit.data.reading import load_rows
from lmkit.data.sources import Source
from lmkit.evaluation.suspicions import (
    DoubtfulGold,
    Suspicions,
    never_predicted,
    overlap_with_training,
    say,
)
from lmkit.metrics.classification import classification_statistics
from lmkit.recipe import Recipe, load_recipe
from lmkit.records import Interval
from lmkit.tasks.answers import Entities, Label
from lmkit.tasks.classification.problem import CLASSIFICATION


def record(number: int, gold: str, a: float, text: str = "") -> dict[str, Any]:
    prediction = "a" if a > 0.5 else "b"
    return {
        "id": number,
        "text": text,
        "gold": gold,
        "prediction": prediction,
        "score": max(a, 1 - a),
        "probabilities": {"a": a, "b": 1 - a},
    }


def test_labels_that_are_never_predicted() -> None:
    assert never_predicted([record(0, "b", 0.9), record(1, "a", 0.9)], Label()) == ["b"]
    tags = [{"gold": ["B-LOC", "I-LOC", "O"], "prediction": ["B-PER", "O", "O"]}]
    assert never_predicted(tags, Entities()) == ["LOC"]


def test_seen_rows_are_counted_and_the_score_of_the_others_stands_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.jsonl").write_text(
        '{"text": "Seen  before", "label": "a"}\n{"text": "other", "label": "b"}\n'
    )
    source = Source(str(tmp_path / "train.jsonl"), "data.train", "train")
    train = load_rows(source, Roles(CLASSIFICATION.fields(Recipe())), ReadOptions(), tmp_path)
    records = [
        record(0, "a", 0.9, "seen before"),
        record(1, "a", 0.9, "new one"),
        record(2, "a", 0.1, "new two"),
    ]
    statistics = classification_statistics(
        [r["gold"] for r in records], [r["prediction"] for r in records], ["a", "b"]
    )

    def measured(rows: Any) -> dict[str, Interval]:
        values = statistics.select(rows).values()
        return {name: Interval(value) for name, value in values.items()}

    task = CLASSIFICATION.task(
        load_recipe({"task": "classification", "name": "x"}), {"labels": ["a", "b"]}, None
    )
    found = overlap_with_training(records, train, task, measured)
    assert (found.exact, found.near, found.train_rows, found.ids) == (1, 0, 2, [0])
    assert found.clean is not None
    assert found.clean.examples == 2
    assert found.clean.metrics["accuracy"].value == 0.5
    say(
        Suspicions(found, '"a"', ["c"], DoubtfulGold(0, [])),
        Label(),
        split="test",
        metric="accuracy",
        value=2 / 3,
    )
    said = capsys.readouterr().err
    assert (
        "1 rows also stand in training, 0 more nearly so; accuracy without them: 0.5000 (2 rows), with them: 0.6667"
        in said
    )
    assert (
        'data.test: every answer is "a", though the gold differs; a lower train.learning_rate'
        in said
    )
    assert "stays so" not in said  # nothing goes on
    assert "never predicts: c" in said


def test_what_was_not_checked_is_not_said_to_be_clean() -> None:
    task: Any = None
    found = overlap_with_training([record(0, "a", 0.9)], "the file is gone", task, lambda rows: {})
    assert found.to_json() == {"checked": False, "reason": "the file is gone"}
