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
from lmkit.tasks.answers import Answer, Entities, Label, LabelSet, Number, Tags, Text, Tokens
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


def test_confident_disagreement_is_ranked_by_how_confident_it_is() -> None:
    # thresholds: a: mean of 0.9, 0.9, 0.3 = 0.7; b: mean of (1 - 0.75), (1 - 0.95), 0.8, 0.9 = 0.5
    records = [
        record(i, gold, a)
        for i, (gold, a) in enumerate(
            zip("aaabbbb", (0.9, 0.9, 0.3, 0.75, 0.95, 0.2, 0.1), strict=True)
        )
    ]
    found = Label().doubtful(records)
    assert [(doubt.id, doubt.gold, doubt.prediction) for doubt in found] == [
        (4, "b", "a"),
        (3, "b", "a"),
        (2, "a", "b"),
    ]
    assert found[0].margin == pytest.approx(0.9)
    assert Label().doubtful(records[:2]) == []


def test_a_word_is_doubtful_where_the_tagger_is_surer_than_where_it_is_right() -> None:
    records = [
        {
            "id": 0,
            "tokens": ["x", "y", "z"],
            "gold": ["A", "A", "B"],
            "prediction": ["A", "A", "A"],
            "score": [0.6, 0.8, 0.69],
        },
        {"id": 1, "tokens": ["u"], "gold": ["B"], "prediction": ["A"], "score": [0.9]},
    ]
    assert [(doubt.id, doubt.word, doubt.text) for doubt in Tags().doubtful(records)] == [
        (1, 0, "u")
    ]


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


@pytest.mark.parametrize(
    ("answer", "gold", "predictions", "decision"),
    [
        (Number(), [1.5, 4.0], [2.75, 2.75], "2.75"),
        (Number(), [1.5, 4.0], [2.75, 2.76], None),
        (Number(), [1.5, 1.5], [2.75, 2.75], None),
        (
            Number(),
            [0.0, 2.0, 5.0],
            [2.70001, 2.69999, 2.7],
            "2.7",
        ),  # the mean alone, but for the last digits
        (Number(), [0.0, 2.0, 5.0], [2.71, 2.69, 2.7], None),
        (Number(), [2e-5, 3e-5, 1e-5], [2.1e-5, 1.9e-5, 2e-5], None),  # whatever the unit
        (
            Number(),
            [0.0, *[1.0, 2.0] * 20, 1e6],
            [1.5] * 20 + [1.2] * 22,
            None,
        ),  # one row far off makes the others no equals
        (Number(), [0.0] * 40 + [1.0], [0.0] * 41, "0"),
        (Label(), ["a", "b"], ["a", "a"], '"a"'),
        (LabelSet(), [["a"], []], [[], []], "[]"),
        (LabelSet(), [["a", "b"], ["b", "a"]], [["a", "b"]] * 2, None),
        (
            Number(),
            [0.0] * 40 + [1.0],
            [0.5] * 40 + [0.50001],
            "0.5",
        ),  # all but a few are one number
        (Number(), [0.0, 1.0], [float("inf")] * 2, None),
        (Entities(), [["O", "B-LOC"], ["O"]], [["O", "O"], ["O"]], '"O"'),
        (Entities(), [["O", "B-LOC"], ["O"]], [["O", "O"], ["B-LOC"]], None),
        (Tags(), [["NOUN", "VERB"]], [["NOUN", "NOUN"]], '"NOUN"'),
        (Text(), ["ja", "nein"], ["a" * 100] * 2, '"' + "a" * 79 + " ..."),
    ],
)
def test_one_prediction_for_all_rows_is_seen_where_their_gold_differs(
    answer: Answer, gold: list[Any], predictions: list[Any], decision: str | None
) -> None:
    records = [
        {"gold": one, "prediction": other} for one, other in zip(gold, predictions, strict=True)
    ]
    assert answer.only_decision(records * 20) == decision


def test_a_few_rows_may_have_one_prediction_by_chance() -> None:
    records = [{"gold": gold, "prediction": "a"} for gold in "ab" * 10]
    assert Label().only_decision(records[:19]) is None
    assert Label().only_decision(records) == '"a"'


def test_a_language_model_gives_no_answers() -> None:
    assert Tokens().only_decision([{"nll": 1.0, "items": 2}] * 20) is None


def test_what_was_not_checked_is_not_said_to_be_clean() -> None:
    task: Any = None
    found = overlap_with_training([record(0, "a", 0.9)], "the file is gone", task, lambda rows: {})
    assert found.to_json() == {"checked": False, "reason": "the file is gone"}
