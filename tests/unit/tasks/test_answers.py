"""Kinds of answers: what each says of records."""

from __future__ import annotations

from typing import Any

import pytest

from lmkit.tasks.answers import (
    Answer,
    Entities,
    Label,
    LabelSet,
    Number,
    Part,
    Tags,
    Text,
    Tokens,
    differences,
)


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


@pytest.mark.parametrize(
    ("answer", "gold", "prediction", "is_wrong"),
    [
        (Label(), "a", "b", True),
        (LabelSet(), ["a", "b"], ["b", "a"], False),
        (Number(), 1.0, 2.0, None),
        (Tags(), ["N", "V"], ["N", "V"], False),
        (Entities(), ["B-X"], ["O"], True),
        (Text(), "ja", "nein", True),
    ],
)
def test_an_answer_says_if_it_is_wrong_where_that_can_be_said(
    answer: Answer, gold: Any, prediction: Any, is_wrong: bool | None
) -> None:
    assert answer.is_wrong({"gold": gold, "prediction": prediction}) is is_wrong
    assert Tokens().is_wrong({"nll": 1.0, "items": 1}) is None


def test_words_far_from_a_wrong_one_are_left_out() -> None:
    tokens = [f"w{i}" for i in range(40)]
    tags = {"tokens": tokens, "gold": ["A"] * 40, "prediction": ["B", *["A"] * 39], "score": [1]}
    (line,) = Tags().display(tags).lines
    assert line.parts[0] == Part("w0", "deleted", "A → B")
    assert line.parts[1].text.split() == [*tokens[1:13], "…"]
    entities = {"tokens": tokens, "gold": ["B-X", *["O"] * 39], "prediction": ["O"] * 40}
    display = Entities().display(entities)
    assert (display.kinds, display.pairs) == (["missed"], [("X", "(none)")])
    gold, predicted = display.lines
    assert gold.parts[0] == Part("w0", "wrong entity", "X")
    assert predicted.parts[0].text.split() == [*tokens[:13], "…"]
    assert gold.parts[1].text.split() == [*tokens[1:13], "…"]


def test_texts_are_compared_word_by_word_or_sign_by_sign() -> None:
    reference, output = differences("a b c", "a c d")
    assert [(part.text, part.mark) for part in reference.parts] == [
        ("a", ""),
        ("b", "inserted"),
        ("c", ""),
    ]
    assert [(part.text, part.mark) for part in output.parts] == [
        ("a", ""),
        ("c", ""),
        ("d", "deleted"),
    ]
    assert differences("我很好", "我不好")[0].joint == ""
