"""What is taken for what."""

from __future__ import annotations

from lmkit.evaluation.mistakes import confusion
from lmkit.tasks.answers import Entities, Label, Text


def test_errors_are_counted_in_all_and_by_type() -> None:
    records = [
        {"gold": ["B-PER", "I-PER", "O", "B-LOC"], "prediction": ["B-PER", "O", "O", "B-PER"]},
        {"gold": ["O", "B-LOC"], "prediction": ["B-ORG", "O"]},
    ]
    found = Entities().errors(records)
    assert found is not None
    assert found.by_type == {
        "LOC": {"correct": 0, "boundary": 0, "type": 1, "both": 0, "missed": 1, "spurious": 0},
        "ORG": {"correct": 0, "boundary": 0, "type": 0, "both": 0, "missed": 0, "spurious": 1},
        "PER": {"correct": 0, "boundary": 1, "type": 0, "both": 0, "missed": 0, "spurious": 0},
    }
    assert [found.total[kind] for kind in ("boundary", "type", "missed", "spurious")] == [
        1,
        1,
        1,
        1,
    ]
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
