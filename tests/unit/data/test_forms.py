"""One task, two forms of rows: tokens with tags, or text with entities in characters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmkit.data.check.columns import Roles
from lmkit.data.readers import ReadOptions
from lmkit.data.reading import load_rows
from lmkit.data.row import OnBadRow
from lmkit.data.rows import Rows
from lmkit.data.sources import Source
from lmkit.data.splits import load_splits
from lmkit.errors import DataError, RecipeError
from lmkit.recipe import load_recipe
from lmkit.tasks.ner.problem import FIELDS, TAGGING

ADA = {
    "text": "Ada in Rome",
    "entities": [{"start": 0, "end": 3, "label": "PER"}, {"start": 7, "end": 11, "label": "LOC"}],
}
ADA_READ = {
    "id": 0,
    "tokens": ["Ada", "in", "Rome"],
    "tags": ["B-PER", "O", "B-LOC"],
    "text": "Ada in Rome",
    "offsets": [[0, 3], [4, 6], [7, 11]],
}


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(
    source: str | list[str], *, on_bad_row: OnBadRow = "error", columns: Mapping[str, str] = {}
) -> Rows:
    roles = Roles(FIELDS, TAGGING.forms, columns)
    named = Source(source, "data.train", "train")
    return load_rows(named, roles, ReadOptions(on_bad_row), Path("cache"))


def jsonl(name: str, *rows: dict[str, Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.mark.parametrize("column", ["entities", "spans", "ents", "annotations", "label"])
def test_text_with_entities_is_read_as_words_with_tags(column: str) -> None:
    rows = load(
        jsonl(
            "a.jsonl", {"text": ADA["text"], column: ADA["entities"]}, {"text": "none", column: []}
        )
    )
    assert rows[0] == ADA_READ
    assert rows[1] == {
        "id": 1,
        "tokens": ["none"],
        "tags": ["O"],
        "text": "none",
        "offsets": [[0, 4]],
    }
    assert load("a.jsonl")[:] == rows[:]  # from the cache


def test_parquet_and_columns_with_other_names_work_too() -> None:
    pq.write_table(
        pa.Table.from_pylist([{"id": 5, "doc": {"body": ADA["text"], "found": ADA["entities"]}}]),
        "a.parquet",
    )
    assert load("a.parquet", columns={"text": "doc.body", "entities": "doc.found"})[0] == ADA_READ


def test_tokens_win_unless_the_columns_say_otherwise() -> None:
    both = {"tokens": ["Ada", "in"], "ner_tags": ["B-X", "O"], **ADA}
    name = jsonl("a.jsonl", both)
    assert load(name)[0] == {"id": 0, "tokens": ["Ada", "in"], "tags": ["B-X", "O"]}
    assert load(name, columns={"entities": "entities"})[0] == ADA_READ
    with pytest.raises(
        DataError,
        match="tokens and entities do not go together\n  name tokens, tags or text, entities",
    ):
        load(name, columns={"tokens": "tokens", "entities": "entities"})
    with pytest.raises(
        DataError, match="this task has no column 'entitys'\n  did you mean 'entities'"
    ):
        load(name, columns={"entitys": "entities"})


def test_the_form_that_is_nearly_there_is_the_one_that_is_spoken_of() -> None:
    with pytest.raises(DataError, match="no column for 'entities'; there are: text, persons"):
        load(jsonl("a.jsonl", {"text": "Ada", "persons": []}))
    with pytest.raises(DataError, match="no column for 'tags'; there are: tokens, x"):
        load(jsonl("b.jsonl", {"tokens": ["Ada"], "x": []}))
    with pytest.raises(
        DataError, match=r"b.jsonl: no column for 'text'"
    ):  # one form for all files of a split
        load([jsonl("a.jsonl", ADA), jsonl("b.jsonl", {"tokens": ["Ada"], "tags": ["O"]})])


def test_bad_entities_are_said_with_their_line_or_left_out() -> None:
    bad = {"text": "Ada in Rome", "entities": [[0, 3, "PER"], [7, 12, "LOC"]]}
    name = jsonl("a.jsonl", bad, ADA)
    with pytest.raises(
        DataError,
        match=r"a.jsonl:1: entity 2: 7 to 12 is not within the text.*\n.*data.on_bad_row=skip",
    ):
        load(name)
    rows = load(name, on_bad_row="skip")
    assert rows[:] == [ADA_READ | {"id": 1}]
    assert [(r["place"], r["id"], r["row"]["entities"]) for r in rows.rejected] == [
        ("a.jsonl:1", 0, bad["entities"])
    ]
    with pytest.raises(DataError, match="'entities' is a string; a list of spans is expected"):
        load(jsonl("b.jsonl", {"text": "a", "entities": "PER"}))
    for label in ("joy", 1):
        with pytest.raises(
            DataError,
            match="a list of spans is expected; one label for a whole text is task: classification",
        ):
            load(jsonl("c.jsonl", {"text": "a", "label": label}))
    with pytest.raises(
        DataError,
        match="nor a list of the three: joy; labels of a whole text are task: classification",
    ):
        load(jsonl("d.jsonl", {"text": "a", "labels": ["joy", "awe"]}))
    with pytest.raises(DataError, match=r"'entities' is null; a list of spans is expected\n"):
        load(jsonl("e.jsonl", {"text": "a", "entities": None}))


def test_splits_may_have_different_forms() -> None:
    Path("b.conll").write_text(
        "Ada I-PER\nin O\n\n"
    )  # IOB1: of the training split it would be refused
    recipe: dict[str, Any] = {
        "task": "ner",
        "data": {"train": "b.conll", "validation": jsonl("a.jsonl", ADA), "labels": ["O"]},
    }
    recipe["data"]["labels"] += ["B-PER", "I-PER", "B-LOC", "I-LOC"]
    splits = load_splits(load_recipe(recipe), TAGGING, wanted=("train", "validation"))
    assert splits.rows["train"][0]["tags"] == ["B-PER", "O"]
    assert splits.rows["validation"][0]["tags"] == ["B-PER", "O", "B-LOC"]


def test_raw_text_will_be_cut_as_these_texts_were() -> None:
    name = jsonl("a.jsonl", {"text": "春日何来", "entities": [[0, 2, "X"]]})
    splits = load_splits(
        load_recipe({"task": "ner", "data": {"train": name}}), TAGGING, wanted=("train",)
    )
    assert splits.facts == {"labels": ["O", "B-X", "I-X"], "word_split": "punctuation"}


def test_there_is_nothing_to_repair_in_entities() -> None:
    recipe = load_recipe(
        {"task": "ner", "data": {"train": jsonl("a.jsonl", ADA)}, "tagging": {"repair": True}}
    )
    with pytest.raises(
        RecipeError, match=r"tagging.repair: entities in characters have no order to repair"
    ):
        load_splits(recipe, TAGGING, wanted=("train",))
