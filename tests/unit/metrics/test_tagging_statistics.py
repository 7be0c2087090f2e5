from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest

from lmkit.errors import DataError
from lmkit.metrics import tagging_statistics
from lmkit.metrics.tagging import chunks

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-X-Y", "I-X-Y"]
Sentences = list[list[str]]


def draw(
    seed: int, sentences: int = 40, names: Sequence[str] = TAGS
) -> tuple[Sentences, Sentences]:
    """Random tags, well formed or not, with predictions that are often right."""
    generator = np.random.default_rng(seed)
    gold, predicted = [], []
    for length in generator.integers(0, 12, size=sentences):
        tags = generator.choice(names, length)
        gold.append(tags.tolist())
        predicted.append(
            np.where(generator.random(length) < 0.7, tags, generator.choice(names, length)).tolist()
        )
    return gold, predicted


# conlleval.pl, transliterated line by line; Erik Tjong Kim Sang, version 2004-01-26.


def end_of_chunk(prev_tag: str, tag: str, prev_type: str, type_: str) -> bool:
    chunk_end = False
    if prev_tag == "B" and tag == "B":
        chunk_end = True
    if prev_tag == "B" and tag == "O":
        chunk_end = True
    if prev_tag == "I" and tag == "B":
        chunk_end = True
    if prev_tag == "I" and tag == "O":
        chunk_end = True
    if prev_tag == "E" and tag == "E":
        chunk_end = True
    if prev_tag == "E" and tag == "I":
        chunk_end = True
    if prev_tag == "E" and tag == "O":
        chunk_end = True
    if prev_tag != "O" and prev_tag != "." and prev_type != type_:
        chunk_end = True
    if prev_tag == "]" or prev_tag == "[":
        chunk_end = True
    return chunk_end


def start_of_chunk(prev_tag: str, tag: str, prev_type: str, type_: str) -> bool:
    chunk_start = False
    if prev_tag == "B" and tag == "B":
        chunk_start = True
    if prev_tag == "I" and tag == "B":
        chunk_start = True
    if prev_tag == "O" and tag == "B":
        chunk_start = True
    if prev_tag == "O" and tag == "I":
        chunk_start = True
    if prev_tag == "E" and tag == "E":
        chunk_start = True
    if prev_tag == "E" and tag == "I":
        chunk_start = True
    if prev_tag == "O" and tag == "E":
        chunk_start = True
    if tag != "O" and tag != "." and prev_type != type_:
        chunk_start = True
    if tag == "[" or tag == "]":
        chunk_start = True
    return chunk_start


def conlleval(gold: Sentences, predicted: Sentences) -> dict[str, float]:
    correct_chunk = found_correct = found_guessed = correct_tags = token_counter = 0
    in_correct = False
    last_correct = last_guessed = "O"
    last_correct_type = last_guessed_type = ""
    lines = []
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        lines += [(False, c, g) for c, g in zip(gold_tags, predicted_tags, strict=True)] + [
            (True, "O", "O")
        ]
    for boundary, correct_tag, guessed_tag in lines:
        correct, correct_type = (
            correct_tag.split("-", 1) if "-" in correct_tag else (correct_tag, "")
        )
        guessed, guessed_type = (
            guessed_tag.split("-", 1) if "-" in guessed_tag else (guessed_tag, "")
        )
        correct_ends = end_of_chunk(last_correct, correct, last_correct_type, correct_type)
        guessed_ends = end_of_chunk(last_guessed, guessed, last_guessed_type, guessed_type)
        if in_correct:
            if correct_ends and guessed_ends and last_guessed_type == last_correct_type:
                in_correct = False
                correct_chunk += 1
            elif correct_ends != guessed_ends or guessed_type != correct_type:
                in_correct = False
        correct_starts = start_of_chunk(last_correct, correct, last_correct_type, correct_type)
        guessed_starts = start_of_chunk(last_guessed, guessed, last_guessed_type, guessed_type)
        if correct_starts and guessed_starts and guessed_type == correct_type:
            in_correct = True
        if correct_starts:
            found_correct += 1
        if guessed_starts:
            found_guessed += 1
        if not boundary:
            if correct == guessed and guessed_type == correct_type:
                correct_tags += 1
            token_counter += 1
        last_guessed, last_correct = guessed, correct
        last_guessed_type, last_correct_type = guessed_type, correct_type
    if in_correct:
        correct_chunk += 1
    precision = correct_chunk / found_guessed if found_guessed else 0.0
    recall = correct_chunk / found_correct if found_correct else 0.0
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "accuracy": correct_tags / token_counter if token_counter else 0.0,
    }


@pytest.mark.parametrize("names", [TAGS, ["O", "B", "I"]])
@pytest.mark.parametrize("seed", range(30))
def test_equals_conlleval_and_seqeval_on_random_tags(seed: int, names: list[str]) -> None:
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
    from seqeval.scheme import IOB2

    gold, predicted = draw(seed, sentences=1 + seed * 2, names=names)
    values = tagging_statistics(gold, predicted, entities=True).values()
    expected = conlleval(gold, predicted)
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert values["f1_strict"] == pytest.approx(
            f1_score(gold, predicted, mode="strict", scheme=IOB2, zero_division=0)
        )
        assert values["f1"] == pytest.approx(f1_score(gold, predicted, zero_division=0))
        assert values["precision"] == pytest.approx(
            precision_score(gold, predicted, zero_division=0)
        )
        assert values["recall"] == pytest.approx(recall_score(gold, predicted, zero_division=0))
        if any(gold):
            assert values["accuracy"] == pytest.approx(accuracy_score(gold, predicted))


@pytest.mark.parametrize(
    ("tags", "lenient", "strict"),
    [
        ([], [], []),
        (["O", "O"], [], []),
        (["B-A", "I-A"], [(0, 2, "A")], [(0, 2, "A")]),
        (["B-A", "B-A"], [(0, 1, "A"), (1, 2, "A")], [(0, 1, "A"), (1, 2, "A")]),
        (["I-A", "I-A", "O", "I-A"], [(0, 2, "A"), (3, 4, "A")], []),
        (["B-A", "I-B", "I-B"], [(0, 1, "A"), (1, 3, "B")], [(0, 1, "A")]),
        (["B-X-Y", "I-X-Y", "I-X-Z"], [(0, 2, "X-Y"), (2, 3, "X-Z")], [(0, 2, "X-Y")]),
        (["B", "I", "O", "I"], [(0, 2, "_"), (3, 4, "_")], [(0, 2, "_")]),
    ],
)
def test_chunks(
    tags: list[str], lenient: list[tuple[int, int, str]], strict: list[tuple[int, int, str]]
) -> None:
    assert sorted(chunks(tags)) == lenient
    assert sorted(chunks(tags, strict=True)) == strict


def test_each_resample_equals_conlleval_on_the_repeated_sentences() -> None:
    gold, predicted = draw(7, sentences=6)
    statistics = tagging_statistics(gold, predicted)
    draws = np.random.default_rng(0).integers(6, size=(20, 6))
    resampled = statistics.metrics(statistics.counts[draws].sum(axis=1))
    for i, rows in enumerate(draws):
        expected = conlleval([gold[row] for row in rows], [predicted[row] for row in rows])
        assert {name: resampled[name][i] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("names", "types"), [(TAGS, ["LOC", "PER", "X-Y"]), (["O", "B", "I"], ["_"])]
)
def test_by_label_equals_seqeval(names: list[str], types: list[str]) -> None:
    from seqeval.metrics import classification_report

    gold, predicted = draw(11, names=names)
    report = classification_report(gold, predicted, output_dict=True, zero_division=0)
    by_label = tagging_statistics(gold, predicted).label_values()
    assert list(by_label) == types
    for label, row in by_label.items():
        assert row["f1"] == pytest.approx(report[label]["f1-score"])
        assert row["precision"] == pytest.approx(report[label]["precision"])
        assert row["recall"] == pytest.approx(report[label]["recall"])
        assert row["support"] == report[label]["support"]


@pytest.mark.parametrize("sentences", [[], [[]], [["O", "O"], []]])
def test_without_entities_every_entity_metric_is_zero(sentences: Sentences) -> None:
    values = tagging_statistics(sentences, sentences).values()
    assert [values[name] for name in ("precision", "recall", "f1", "f1_strict")] == [0, 0, 0, 0]
    assert values["accuracy"] == (1 if any(sentences) else 0)


def test_plain_tags_are_words_to_classify() -> None:
    from sklearn.metrics import f1_score

    gold = [["DET", "NOUN", "I"], ["VERB"], []]
    predicted = [["DET", "VERB", "I"], ["VERB"], []]
    statistics = tagging_statistics(gold, predicted)
    expected = f1_score([*gold[0], *gold[1]], [*predicted[0], *predicted[1]], average="macro")
    assert statistics.values() == pytest.approx({"accuracy": 0.75, "f1_macro": expected})
    assert statistics.counts.shape[0] == 3
    assert statistics.label_values()["VERB"] == pytest.approx(
        {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1}
    )


def test_who_knows_all_tags_decides_what_they_mark() -> None:
    """A few sentences may have one-letter parts of speech that look like prefixes, or nothing but O."""
    assert "f1" in tagging_statistics([["B", "O"]], [["B", "O"]]).values()
    assert "f1_macro" in tagging_statistics([["B", "O"]], [["B", "O"]], entities=False).values()
    assert "f1_macro" in tagging_statistics([["I", "O"]], [["I", "O"]]).values()
    assert tagging_statistics([["O", "I"]], [["O", "I"]], entities=True).values()["f1"] == 1
    with pytest.raises(DataError, match="'E' is not IOB2"):
        tagging_statistics([["B", "E"]], [["O", "O"]], entities=True)


def test_other_schemes_are_refused_rather_than_miscounted() -> None:
    with pytest.raises(DataError, match="'E-PER' is not IOB2"):
        tagging_statistics([["B-PER", "E-PER"]], [["O", "O"]])


def test_lengths_must_be_equal() -> None:
    with pytest.raises(AssertionError, match="1 gold sentences, 0 predicted"):
        tagging_statistics([["O"]], [])
    with pytest.raises(AssertionError, match="sentence 1: 1 gold tags, 2 predicted"):
        tagging_statistics([[], ["O"]], [[], ["O", "O"]])
