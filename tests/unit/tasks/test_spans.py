"""Entities in characters become tags of words, and come back exactly."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lmkit.tasks.ner.entities import entities
from lmkit.tasks.ner.spans import spans_of, words_with_tags

TEXT = "Dr. Ada Lovelace-Byron of Köln met हिन्दी friends."


@pytest.mark.parametrize(
    "entity",
    [
        {"start": 4, "end": 16, "label": "PER"},
        {"start": 4, "end": 16, "type": "PER"},
        {"start": 4, "end": 16, "tag": "PER", "text": "Ada Lovelace"},
        {"start": 4, "end": 16, "entity_group": "PER", "score": 0.9},
        {"id": 7, "start_offset": 4, "end_offset": 16, "label": "PER"},  # doccano
        [4, 16, "PER"],
        {"start": 3, "end": 16, "label": " PER "},  # a blank before
        {"start": 3, "end": 16, "label": "PER", "text": " Ada Lovelace"},
    ],
)
def test_an_entity_may_be_written_in_several_ways(entity: Any) -> None:
    assert spans_of([entity], TEXT) == [(4, 16, "PER")]


def test_words_are_cut_at_the_borders_of_entities_alone() -> None:
    row = words_with_tags(
        {"text": TEXT, "entities": [[26, 30, "LOC"], [4, 16, "PER"], [35, 37, "X"]]}
    )
    assert list(zip(row["tokens"], row["tags"], strict=True)) == [
        ("Dr", "O"),
        (".", "O"),
        ("Ada", "B-PER"),
        ("Lovelace", "I-PER"),
        ("-Byron", "O"),  # forced: without the entity the word would be Lovelace-Byron
        ("of", "O"),
        ("Köln", "B-LOC"),
        ("met", "O"),
        ("हि", "B-X"),
        ("न्दी", "O"),
        ("friends", "O"),
        (".", "O"),
    ]
    assert row["text"] == TEXT
    assert [TEXT[start:end] for start, end in row["offsets"]] == row["tokens"]


def test_neighbours_of_one_type_stay_two() -> None:
    row = words_with_tags({"text": "北京上海", "entities": [[0, 2, "L"], [2, 4, "L"]]})
    assert (row["tokens"], row["tags"]) == (["北", "京", "上", "海"], ["B-L", "I-L", "B-L", "I-L"])


@pytest.mark.parametrize("seed", range(20))
def test_entities_come_back_exactly(seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choice("ab-é .,\n京म्ู'9") for _ in range(40))
    ends = sorted(draw.sample(range(41), 12))
    spans = [
        (start, end, draw.choice("AB")) for start, end in zip(ends[::2], ends[1::2], strict=True)
    ]
    spans = [span for span in spans if text[span[0] : span[1]].strip()]
    row = words_with_tags({"text": text, "entities": [list(span) for span in spans]})
    found = entities(text, row["offsets"], row["tags"], [1.0] * len(row["tags"]))
    trimmed = [(text[start:end].strip(), label) for start, end, label in spans]
    assert [(entity["text"], entity["label"]) for entity in found] == trimmed
    assert [(entity["start"], entity["end"]) for entity in found] == [
        span[:2] for span in spans_of(spans, text)
    ]


@pytest.mark.parametrize(
    ("spans", "problem"),
    [
        (
            [[4, 16, "PER"], [8, 22, "X"]],
            r"the entities 'Ada Lovelace' \(PER\) and 'Lovelace-Byron' \(X\) overlap",
        ),
        ([[4, 16, "PER"], [4, 16, "PER"]], "overlap"),
        ([[26, 30, "LOC"], [4, 4, "PER"]], "entity 2: 4 to 4 is empty"),
        ([[3, 4, "PER"]], "entity 1: 3 to 4 is blank"),
        ([[4, 99, "PER"]], "entity 1: 4 to 99 is not within the text, which has 50 characters"),
        ([[-4, 3, "PER"]], "not within the text"),
        ([[16, 4, "PER"]], "not within the text"),
        ([["4", 16, "PER"]], "start and end are to be whole numbers, found '4' and 16"),
        ([[True, 16, "PER"]], "start and end are to be whole numbers"),
        ([{"start": 4, "label": "PER"}], "found 4 and None"),
        ([[4, 16, ""]], "its label is to be a name, found ''"),
        ([{"start": 4, "end": 16}], "its label is to be a name, found None"),
        (
            ["PER"],
            "entity 1 is neither an object with start, end and label nor a list of the three: PER",
        ),
        ([[4, 16]], "neither an object"),
        (
            [{"start": 27, "end": 31, "label": "LOC", "text": "Köln"}],
            "27 to 31 is 'öln ', but the entity says 'Köln'",
        ),
    ],
)
def test_what_cannot_stand_is_refused(spans: list[Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        words_with_tags({"text": TEXT, "entities": spans})
