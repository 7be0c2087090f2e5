"""Labels and tags over all splits, and the rows set aside for validation."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lmkit.data.check.columns import Roles
from lmkit.data.check.labels import check_labels, labels_of
from lmkit.data.check.tags import prepare_tags, scheme_of
from lmkit.data.folds import split_by_hash
from lmkit.data.readers import ReadOptions
from lmkit.data.reading import load_rows
from lmkit.data.rows import Rows
from lmkit.data.sources import Source
from lmkit.errors import DataError, RecipeError
from lmkit.tasks.fields import Field

CLASSIFICATION = (Field("text", "text"), Field("label", "label", gold=True))
SEVERAL = (Field("text", "text"), Field("label", "labels", gold=True))
_, LABEL = CLASSIFICATION
NER = (Field("tokens", "words"), Field("tags", "tags", gold=True))
_, TAGS = NER


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(source: str, fields: tuple[Field, ...] = CLASSIFICATION) -> Rows:
    named = Source(source, "data.train", "train")
    return load_rows(named, Roles(fields), ReadOptions(), Path("cache"))


def jsonl(name: str, *rows: dict[str, Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def conll(name: str, *sentences: str) -> str:
    """Sentences as ``word/TAG word/TAG``."""
    blocks = (
        "".join(" ".join(pair.split("/")) + "\n" for pair in sentence.split())
        for sentence in sentences
    )
    Path(name).write_text("\n".join(blocks))
    return name


def examples(number: int) -> list[dict[str, Any]]:
    return [{"text": f"第{i}句", "label": i % 3} for i in range(number)]


def test_labels_have_an_order_of_their_own() -> None:
    rows = load(jsonl("a.jsonl", *({"text": "a", "label": n} for n in (10, 9, -1, 9))))
    assert labels_of(rows, LABEL) == ["-1", "9", "10"]
    assert labels_of(rows.select([0, 1]), LABEL) == ["9", "10"]
    assert labels_of(
        load(jsonl("b.jsonl", *({"text": "a", "label": n} for n in ("b", "10", "a")))), LABEL
    ) == ["10", "a", "b"]
    tagged = load(conll("a.conll", "a/I-PER b/B-LOC", "c/O d/B-PER"), NER)
    assert labels_of(tagged, TAGS) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert labels_of(load(conll("b.conll", "a/NOUN b/DET"), NER), TAGS) == ["DET", "NOUN"]


def test_tags_that_are_numbers_are_said_to_be_plain(capsys: pytest.CaptureFixture[str]) -> None:
    rows = load(jsonl("a.jsonl", {"tokens": ["Ada", "in"], "tags": [1, 0]}), NER)
    assert prepare_tags({"train": rows}, on_bad_row="error")["train"] is rows
    assert "data.train: the tags are numbers, so nothing tells entities" in capsys.readouterr().err
    prepare_tags({"train": load(conll("b.conll", "a/O b/B-1"), NER)}, on_bad_row="error")
    assert capsys.readouterr().err == ""


def test_entities_in_an_unknown_spelling_are_said_with_their_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = load(conll("a.conll", "a/O", "b/O c/B_PER d/I_PER"), NER)
    assert prepare_tags({"train": rows}, on_bad_row="error")["train"] is rows
    said = capsys.readouterr().err
    assert "data.train: tags such as 'B_PER' (a.conll:4) seem to mark entities" in said
    assert "write them like B-PER, I-PER and O" in said
    prepare_tags(
        {"train": load(conll("b.conll", "a/NN_sg b/ADJ-pos c/-LRB-"), NER)}, on_bad_row="error"
    )
    assert capsys.readouterr().err == ""


def test_entities_without_types_are_iob2_and_have_both_tags() -> None:
    splits = {
        "train": load(conll("a.conll", "a/S b/O", "c/B d/E"), NER),
        "test": load(conll("b.conll", "a/B b/I c/E"), NER),
    }
    assert scheme_of(splits["train"]) == "bare bioes"
    prepared = prepare_tags(splits, on_bad_row="error")
    assert [row["tags"] for row in prepared["train"]] == [["B", "O"], ["B", "I"]]
    assert prepared["test"][0]["tags"] == ["B", "I", "I"]
    assert labels_of(prepared["train"], TAGS) == ["O", "B", "I"]
    assert labels_of(load(conll("c.conll", "a/B b/O"), NER), TAGS) == ["O", "B", "I"]
    with pytest.raises(DataError, match=r"d.conll:2: I follows O; an entity begins with B\n"):
        prepare_tags(
            {
                "train": load(conll("c.conll", "a/B b/O"), NER),
                "test": load(conll("d.conll", "a/O b/I"), NER),
            },
            on_bad_row="error",
        )


def test_names_of_several_labels_are_not_taken_for_tags() -> None:
    rows = load(
        jsonl("a.jsonl", {"text": "a", "label": ["B"]}, {"text": "b", "label": ["O"]}), SEVERAL
    )
    assert labels_of(rows, LABEL) == ["O", "B"]


def test_unknown_labels_are_said_or_left_out() -> None:
    rows = load(jsonl("a.jsonl", {"text": "a", "label": "good"}, {"text": "b", "label": "godd"}))
    assert check_labels(rows, LABEL, ["good", "godd"], split="test") is rows
    with pytest.raises(
        DataError,
        match=r"a.jsonl:2: the label 'godd' does not .*; did you mean 'good'\?.*\n.*data.labels.*on_bad_row=skip",
    ):
        check_labels(rows, LABEL, ["good", "bad"], split="test")
    kept = check_labels(rows, LABEL, ["good", "bad"], split="test", on_bad_row="skip")
    assert [row["text"] for row in kept] == ["a"]
    assert [(r["place"], r["id"], r["row"]) for r in kept.rejected] == [
        ("a.jsonl:2", 1, {"text": "b", "label": "godd"})
    ]
    with pytest.raises(DataError, match="no usable row is left for test"):
        check_labels(rows, LABEL, ["x"], split="test", on_bad_row="skip")


def test_unknown_tags_are_said_at_the_line_of_the_word() -> None:
    rows = load(conll("a.conll", "a/O", "b/O c/B-PRE"), NER)
    with pytest.raises(DataError, match=r"a.conll:4: the tag 'B-PRE'.* did you mean 'B-PER'"):
        check_labels(rows, TAGS, ["O", "B-PER"], split="test")


def test_tags_become_iob2_by_the_scheme_of_the_training_rows() -> None:
    splits = {
        "test": load(conll("b.conll", "d/I-LOC e/I-LOC"), NER),
        "train": load(conll("a.conll", "a/I-PER b/I-PER", "c/I-PER d/B-PER e/O"), NER),
    }
    assert scheme_of(splits["train"]) == "iob1"
    for _ in range(2):  # the second time from the cache
        prepared = prepare_tags(splits, on_bad_row="error")
        assert [row["tags"] for row in prepared["train"]] == [
            ["B-PER", "I-PER"],
            ["B-PER", "B-PER", "O"],
        ]
        assert prepared["test"][0]["tags"] == ["B-LOC", "I-LOC"]
        assert prepared["train"].place(1, word=2) == "a.conll:6"
    assert prepared["train"].fingerprint != splits["train"].fingerprint


def test_iob2_and_plain_tags_stay_as_they_are() -> None:
    for sentence in ("a/B-PER b/I-PER", "a/NOUN b/X"):
        splits = {"train": load(conll("a.conll", sentence), NER)}
        assert prepare_tags(splits, on_bad_row="error")["train"] is splits["train"]


def test_bare_tags_are_those_of_a_model_that_has_more_of_them() -> None:
    """Word segmentation by B, I, E and S, or a model of BIOES: its answers could not equal converted gold."""
    rows = load(conll("a.conll", "a/B b/I c/E d/S e/O"), NER)
    assert (
        prepare_tags({"test": rows}, on_bad_row="error", model_tags=["O", "B", "I", "E", "S"])[
            "test"
        ]
        is rows
    )
    assert prepare_tags({"test": rows}, on_bad_row="error", model_tags=["O", "B", "I"])["test"][0][
        "tags"
    ] == ["B", "I", "I", "B", "O"]


def test_a_few_typed_tags_among_plain_ones_are_refused_at_their_line() -> None:
    rows = load(conll("a.conll", "a/NN b/VB", "c/B-X d/IN e/JJ"), NER)
    with pytest.raises(
        DataError,
        match=r"a.conll:4: 'B-X' marks an entity, and other tags, such as 'IN', mark none",
    ):
        prepare_tags({"train": rows}, on_bad_row="error")


def test_a_prefix_whose_type_is_empty_among_nothing_but_o_is_loaded() -> None:
    rows = load(conll("a.conll", "a/B- b/O"), NER)
    assert prepare_tags({"train": rows}, on_bad_row="error")["train"] is rows


def test_wrong_sequences_are_said_at_the_line_of_the_word_or_left_out() -> None:
    rows = load(conll("a.conll", "a/B-PER", "b/O c/I-PER", "d/B-LOC"), NER)
    remedy = r"tagging.repair=true.*data.on_bad_row=skip"
    with pytest.raises(
        DataError, match=rf"a.conll:4: I-PER follows O; an entity begins with B-\n.*{remedy}"
    ):
        prepare_tags({"train": rows}, on_bad_row="error")
    kept = prepare_tags({"train": rows}, on_bad_row="skip")["train"]
    assert [row["id"] for row in kept] == [0, 2]
    assert kept.rejected == [
        {
            "place": "a.conll:4",
            "problem": "I-PER follows O; an entity begins with B-",
            "id": 1,
            "row": {"tokens": ["b", "c"], "tags": ["O", "I-PER"]},
        }
    ]


def test_wrong_sequences_are_repaired_on_request_counted_and_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = load(conll("a.conll", "a/B-PER b/I-PER", "b/O c/I-PER", "d/I-LOC", "e/B-LOC"), NER)
    right = load(conll("b.conll", "a/B-PER"), NER)
    repaired = prepare_tags({"train": train, "test": right}, on_bad_row="error", repair=True)
    assert [row["tags"] for row in repaired["train"]] == [
        ["B-PER", "I-PER"],
        ["O", "B-PER"],
        ["B-LOC"],
        ["B-LOC"],
    ]
    assert repaired["test"] is right
    said = "warning: data.train: 2 of 4 tag sequences repaired, the first at a.conll:5: I-PER follows O; an entity begins with B-"
    assert capsys.readouterr().err.strip() == said
    assert repaired["train"].place(1, word=1) == "a.conll:5"


def test_what_is_no_tag_is_not_repaired() -> None:
    rows = load(conll("a.conll", "a/B-PER", "b/O c/I-PER", "d/B_LOC"), NER)
    for repair in (True, False):
        with pytest.raises(
            DataError,
            match=r"'B_LOC' is not a tag of this data .*did you mean 'B-LOC'\?\n  correct it, or leave",
        ):
            prepare_tags({"train": rows.select([0, 2])}, on_bad_row="error", repair=repair)
    with pytest.raises(DataError, match=r"a.conll:6: 'B_LOC'"):
        prepare_tags({"train": rows}, on_bad_row="error", repair=True)
    kept = prepare_tags({"train": rows}, on_bad_row="skip", repair=True)["train"]
    assert [row["tags"] for row in kept] == [["B-PER"], ["O", "B-PER"]]
    with pytest.raises(RecipeError, match=r"tagging.repair: plain tags have no order to repair"):
        prepare_tags(
            {"train": load(conll("b.conll", "a/NOUN"), NER)}, on_bad_row="error", repair=True
        )


# ---------------------------------------------------------------------------------- validation


def texts(rows: Rows) -> set[str]:
    return {row["text"] for row in rows}


def test_the_split_does_not_depend_on_order_or_company() -> None:
    data = examples(400)
    train, validation = split_by_hash(load(jsonl("a.jsonl", *data)), 0.1)
    assert 20 < len(validation) < 60
    assert len(train) + len(validation) == 400
    random.Random(0).shuffle(data)
    moved = split_by_hash(load(jsonl("a.jsonl", *data)), 0.1)
    assert (texts(moved[0]), texts(moved[1])) == (texts(train), texts(validation))
    fewer = split_by_hash(load(jsonl("a.jsonl", *data[:200])), 0.1)
    assert texts(fewer[1]) <= texts(validation)
    doubled = split_by_hash(load(jsonl("a.jsonl", *data, *data)), 0.1)
    assert not texts(doubled[0]) & texts(doubled[1])


def test_an_empty_side_of_the_split_is_an_error() -> None:
    rows = load(jsonl("a.jsonl", *examples(2)))
    with pytest.raises(
        DataError,
        match=r"data.validation_fraction: no row of 2 rows falls to validation\n.*data.validation",
    ):
        split_by_hash(rows, 1e-9)
    with pytest.raises(DataError, match="falls to training"):
        split_by_hash(rows, 1 - 1e-9)
