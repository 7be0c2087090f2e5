"""What is taken for what."""

from __future__ import annotations

import pytest

from lmkit.evaluation.mistakes import confusion
from lmkit.metrics.entities import match_entities
from lmkit.tasks.answers import Entities, Label, Text


@pytest.mark.parametrize(
    ("gold", "predicted", "kinds"),
    [
        ([(0, 2, "PER")], [(0, 2, "PER")], ["correct"]),
        ([(0, 2, "PER")], [(0, 2, "LOC")], ["type"]),
        ([(0, 2, "PER")], [(0, 1, "PER")], ["boundary"]),
        ([(0, 2, "PER")], [(1, 3, "LOC")], ["both"]),
        ([(0, 2, "PER")], [], ["missed"]),
        ([], [(0, 2, "PER")], ["spurious"]),
        (
            [(0, 2, "PER")],
            [(2, 3, "PER")],
            ["missed", "spurious"],
        ),  # neighbours have no word in common
        (
            [(0, 3, "PER")],
            [(0, 1, "LOC"), (2, 3, "PER")],
            ["boundary", "spurious"],
        ),  # the same type before the leftmost
        (
            [(0, 1, "PER"), (1, 2, "PER")],
            [(0, 2, "PER")],
            ["boundary", "missed"],
        ),  # one prediction answers for one entity
    ],
)
def test_every_entity_is_in_one_match(gold: list, predicted: list, kinds: list[str]) -> None:
    assert sorted(match.kind for match in match_entities(gold, predicted)) == kinds


def test_errors_are_counted_in_all_and_by_type() -> None:
    records = [
        {"gold": ["B-PER", "I-PER", "O", "B-LOC"], "prediction": ["B-PER", "O", "O", "B-PER"]},
        {"gold": ["O", "B-LOC"], "prediction": ["B-ORG", "O"]},
    ]
    found = Entities().errors(records)
    assert found is not None
    assert found["by_type"] == {
        "LOC": {"correct": 0, "boundary": 0, "type": 1, "both": 0, "missed": 1, "spurious": 0},
        "ORG": {"correct": 0, "boundary": 0, "type": 0, "both": 0, "missed": 0, "spurious": 1},
        "PER": {"correct": 0, "boundary": 1, "type": 0, "both": 0, "missed": 0, "spurious": 0},
    }
    assert (found["boundary"], found["type"], found["missed"], found["spurious"]) == (1, 1, 1, 1)
    table = confusion(records, Entities(), ())
    assert table is not None
    assert table.to_json() == {
        "labels": ["LOC", "ORG", "PER", "(none)"],
        "counts": [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]],
    }


def test_confusion_of_labels_keeps_labels_that_never_occur() -> None:
    records = [{"gold": "a", "prediction": "b"}, {"gold": "a", "prediction": "a"}]
    table = confusion(records, Label(), ["c", "b", "a"])
    assert table is not None
    assert table.to_json() == {
        "labels": ["c", "b", "a"],
        "counts": [[0, 0, 0], [0, 0, 0], [0, 1, 1]],
    }
    assert confusion(records, Text(), []) is None
