"""What ``lmkit data`` tells of the rows of a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmkit.commands.data import look
from lmkit.errors import DataError

ROWS = [("A whale", "sea"), ("a  whale", "sea"), ("the ship at sea", "sea"), ("a house", "land")]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    for name, rows in (("train", ROWS), ("test", [("a house", "land"), ("the road", "land")])):
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "mine.yaml").write_text(
        "task: classification\ndata: {train: train.jsonl, test: test.jsonl}\n"
    )
    return str(tmp_path / "mine.yaml")


def test_rows_lengths_labels_and_repetitions_are_told(recipe: str) -> None:
    summary = look(recipe)
    found = summary.to_json()
    assert (found["recipe"], found["task"], list(found["splits"])) == (
        "mine",
        "classification",
        ["train", "test"],
    )
    train, test = found["splits"].values()
    assert (train["rows"], train["left_out"], train["repeated"]) == (4, 0, 1)
    assert train["characters"] == {"shortest": 7, "median": 7, "longest": 15, "in_all": 36}
    assert train["labels"] == {"sea": 3, "land": 1}
    assert (test["rows"], test["in_train"]) == (2, 1)
    assert train["first"] == {"id": 0, "text": "A whale", "label": "sea"}
    shown = summary.to_text()
    assert "also in train" in shown
    assert 'train, the first row: {"text": "A whale", "label": "sea"}' in shown


def test_tags_are_counted_by_entity_and_numbers_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("Ada B-PER\nLovelace I-PER\nin O\nRome B-LOC\n")
    words: dict[str, Any] = look(
        {"task": "ner", "data": {"train": str(tmp_path / "a.conll")}}
    ).to_json()
    assert words["splits"]["train"]["labels"] == {"PER": 1, "O": 1, "LOC": 1}
    for tags, counts in (("BIOB", {"_": 2, "O": 1}), ("BINO", {"B": 1, "I": 1, "N": 1, "O": 1})):
        (tmp_path / "b.conll").write_text("".join(f"word {tag}\n" for tag in tags))
        bare: dict[str, Any] = look(
            {"task": "ner", "data": {"train": str(tmp_path / "b.conll")}}
        ).to_json()
        assert bare["splits"]["train"]["labels"] == counts
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0.5}\n{"text": "b", "label": 1.5}\n')
    numbers = look(
        {"task": "classification", "data": {"train": str(tmp_path / "a.jsonl")}}
    ).to_json()
    assert "labels" not in numbers["splits"]["train"]


def test_classes_that_look_like_tags_are_counted_as_they_are(tmp_path: Path) -> None:
    labels = ["I-beam", "B-cell", "T-cell", "cell", "I-beam"]
    (tmp_path / "a.jsonl").write_text(
        "".join(
            f'{{"text": "{number}", "label": "{label}"}}\n' for number, label in enumerate(labels)
        )
    )
    found = look({"task": "classification", "data": {"train": str(tmp_path / "a.jsonl")}}).to_json()
    assert found["splits"]["train"]["labels"] == {"I-beam": 2, "B-cell": 1, "T-cell": 1, "cell": 1}


def test_what_training_would_refuse_is_refused(recipe: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        look(recipe, ["data.train=trian.jsonl"])
