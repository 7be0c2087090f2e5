"""Rows as tasks see them: found, checked and cached; and what is said of bad ones."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from lmkit.data import formats
from lmkit.data.check.columns import Roles
from lmkit.data.readers import ReadOptions
from lmkit.data.reading import load_rows
from lmkit.data.row import OnBadRow
from lmkit.data.rows import Rows
from lmkit.data.sources import Source
from lmkit.errors import DataError
from lmkit.tasks.fields import Field

CLASSIFICATION = (
    Field("text", "text", ("sentence",)),
    Field("label", "label", ("class",), gold=True),
)
PAIRS = (Field("source", "text"), Field("target", "text", gold=True))
NER = (Field("tokens", "words", ("words",)), Field("tags", "tags", ("ner_tags",), gold=True))


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(
    source: str | list[str],
    fields: tuple[Field, ...] = CLASSIFICATION,
    *,
    on_bad_row: OnBadRow = "error",
    max_rows: int | None = None,
    **roles: Any,
) -> Rows:
    options = ReadOptions(on_bad_row, max_rows=max_rows)
    named = Source(source, "data.train", "train")
    return load_rows(named, Roles(fields, **roles), options, Path("cache"))


def jsonl(name: str, *rows: dict[str, Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def examples(number: int) -> list[dict[str, Any]]:
    return [{"text": f"第{i}句", "label": i % 3} for i in range(number)]


# ---------------------------------------------------------------------------------- the cache


def test_what_was_read_is_not_read_again_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(jsonl("a.jsonl", *examples(3)))
    with monkeypatch.context() as patch:
        patch.setattr(formats, "read_rows", None)
        Path("a.jsonl").rename("b.jsonl")
        again = load("b.jsonl")
        assert (again[:], again.fingerprint, again.place(1)) == (
            first[:],
            first.fingerprint,
            "b.jsonl:2",
        )
    assert len(load(jsonl("b.jsonl", *examples(4)))) == 4
    assert not list(Path("cache").glob("*.tmp"))


def test_several_at_once_share_one_cache() -> None:
    name = jsonl("a.jsonl", *examples(50))
    with ThreadPoolExecutor(4) as pool:
        assert len({rows.fingerprint for rows in pool.map(load, [name] * 4)}) == 1


@pytest.mark.parametrize("left", [b"", b"ARROW1", bytes(999)])
def test_what_a_machine_that_went_down_left_in_the_cache_is_read_anew(left: bytes) -> None:
    first = load(jsonl("a.jsonl", *examples(3)))
    first.path.unlink()  # not in place: it is mapped
    first.path.write_bytes(left)
    assert load("a.jsonl")[:] == examples_with_ids(3)


def examples_with_ids(number: int) -> list[dict[str, Any]]:
    return [
        {"id": i, "text": row["text"], "label": str(row["label"])}
        for i, row in enumerate(examples(number))
    ]


def test_max_rows_stops_early_and_gold_may_be_absent() -> None:
    Path("a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\nnot json')
    rows = load("a.jsonl", max_rows=2, with_gold=False)
    assert rows[:] == [{"id": 0, "text": "a"}, {"id": 1, "text": "b"}]


# ---------------------------------------------------------------------------------- columns


def test_columns_are_mapped_by_name_alias_or_position() -> None:
    name = jsonl("a.jsonl", {"sentence": "a", "text": "b", "sentiment": "x"})
    assert load(name, columns={"label": "sentiment"})[0] == {"id": 0, "text": "b", "label": "x"}
    assert load(name, columns={"label": "sentiment", "text": "sentence"})[0]["text"] == "a"
    Path("a.tsv").write_text("x\t天\n")
    assert load("a.tsv", columns={"text": "1", "label": "0"})[0] == {
        "id": 0,
        "text": "天",
        "label": "x",
    }
    Path("a.conll").write_text("John NNP X B-PER\n")
    assert load("a.conll", NER, columns={"tags": "1"})[0]["tags"] == ["NNP"]


@pytest.mark.parametrize(
    ("columns", "place", "problem", "remedy"),
    [
        (
            {},
            "a.csv",
            "no column for 'label'; there are: text, lable",
            "data.columns={label: lable}",
        ),
        (
            {"label": "labl"},
            "a.csv",
            "no column for 'label' ('labl', says data.columns)",
            "data.columns={label: lable}",
        ),
        (
            {"lable": "lable"},
            "data.columns",
            "this task has no column 'lable'",
            "did you mean 'label'?",
        ),
        (
            {"label": "1", "text": "text"},
            "data.columns",
            "some columns are named, others given by position",
            "positions for all",
        ),
        (
            {"label": "2", "text": "0"},
            "a.csv",
            "no column for 'label' ('2', says data.columns); there are: 0, 1",
            "by position",
        ),
    ],
)
def test_missing_columns_are_said_with_the_nearest(
    columns: dict[str, str], place: str, problem: str, remedy: str
) -> None:
    Path("a.csv").write_text("text,lable\na,b\n")
    with pytest.raises(DataError) as caught:
        load("a.csv", columns=columns)
    assert caught.value.place == place
    assert problem in caught.value.problem
    assert remedy in str(caught.value.remedy)


def test_a_dot_leads_into_an_object() -> None:
    pair = {"en": "sea", "de": "Meer", "x.y": "z"}
    columns = {"source": "translation.en", "target": "translation.de"}
    expected = [{"id": 0, "source": "sea", "target": "Meer"}]
    pq.write_table(pa.table({"id": [7], "translation": [pair]}), "a.parquet")
    feather.write_feather(pa.table({"translation": [pair]}), "a.arrow")
    for name in (jsonl("a.jsonl", {"translation": pair}), "a.parquet", "a.arrow"):
        assert load(name, PAIRS, columns=columns)[:] == expected
    assert (
        load("a.jsonl", PAIRS, columns=columns | {"source": "translation.x.y"})[0]["source"] == "z"
    )
    plain = jsonl("b.jsonl", {"translation.en": "plain", "translation": pair})
    assert load(plain, PAIRS, columns=columns)[:] == [
        {"id": 0, "source": "plain", "target": "Meer"}
    ]


def test_what_is_wrong_within_an_object_is_said() -> None:
    columns = {"source": "translation.en", "target": "translation.de"}
    rows = [
        None,
        {"en": "a", "de": "b"},
        {"en": "a"},
        "a",
        {"en": "a", "de": " "},
        {"en": None, "de": "b"},
    ]
    name = jsonl("a.jsonl", *({"id": i, "translation": row} for i, row in enumerate(rows)))
    found = load(name, PAIRS, columns=columns, on_bad_row="skip")
    assert found[:] == [{"id": 1, "source": "a", "target": "b"}]
    assert [(row["place"], row["problem"]) for row in found.rejected] == [
        ("a.jsonl:1", "'translation' is null; an object with 'en' is expected"),
        ("a.jsonl:3", "no 'de' in 'translation'"),
        ("a.jsonl:4", "'translation' is a string; an object with 'en' is expected"),
        ("a.jsonl:5", "'translation.de' is blank"),
        ("a.jsonl:6", "'translation.en' is null; text is expected"),
    ]
    jsonl("b.jsonl", {"id": 0, "translation": {"en": "a", "de": "b"}})
    there = "there are: id, translation.en, translation.de\n"
    with pytest.raises(DataError, match=f"b.jsonl: no column for 'source'; {there}"):
        load("b.jsonl", PAIRS)
    with pytest.raises(
        DataError, match=f"says data.columns\\); {there}.*data.columns={{source: translation.en}}"
    ):
        load("b.jsonl", PAIRS, columns={"source": "translation.eng"})


# ---------------------------------------------------------------------------------- bad rows


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "", "label": 1}, "'text' is empty"),
        ({"text": " \u3000", "label": 1}, "'text' is blank"),
        ({"text": None, "label": 1}, "'text' is null; text is expected"),
        ({"text": 3, "label": 1}, "'text' is a number; text is expected"),
        ({"text": ["a"], "label": 1}, "'text' is a list; text is expected"),
        ({"text": "a\ud800", "label": 1}, "'text' contains half a surrogate pair"),
        ({"text": "a", "label": " "}, "'label' is blank"),
        ({"text": "a", "label": None}, "'label' is null; a label is a string or a whole number"),
        ({"text": "a", "label": 0.5}, "'label' is a number 0.5; a label is"),
        ({"text": "a", "label": ["x"]}, "'label' is a list; a label is"),
        ({"text": "a"}, "no 'label' here, unlike in the first row"),
    ],
)
def test_bad_rows_stop_at_their_line_or_are_kept_aside(row: dict[str, Any], problem: str) -> None:
    name = jsonl("a.jsonl", {"text": "天", "label": 1}, row, {"text": "c\0", "label": " x "})
    with pytest.raises(DataError) as caught:
        load(name)
    assert problem in caught.value.problem
    assert caught.value.place == "a.jsonl:2"
    assert "data.on_bad_row=skip" in str(caught.value.remedy)
    rows = load(name, on_bad_row="skip")
    assert rows[:] == [
        {"id": 0, "text": "天", "label": "1"},
        {"id": 2, "text": "c\0", "label": "x"},
    ]
    (rejected,) = rows.rejected
    assert (rejected["place"], rejected["id"], rejected["row"]) == ("a.jsonl:2", 1, row)
    assert problem in rejected["problem"]
    assert rows.files[0].rows == 3


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 words but 1 tags"),
        (
            {"tokens": "a b", "tags": ["O", "O"]},
            "'tokens' is a string; a list of words is expected",
        ),
        ({"tokens": [], "tags": []}, "'tokens' is an empty list"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "'tokens[1]' is blank"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, "'tokens[1]' is a number; text is expected"),
        ({"tokens": ["a"], "tags": [None]}, "'tags[0]' is null"),
        ({"tokens": ["a"], "tags": "O"}, "'tags' is a string; a list of tags is expected"),
    ],
)
def test_bad_words_and_tags_are_said(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=r"^a.jsonl:2: ") as caught:
        load(jsonl("a.jsonl", {"tokens": ["天"], "tags": [3]}, row), NER)
    assert problem in caught.value.problem


def test_unreadable_rows_are_skipped_and_counted() -> None:
    Path("a.csv").write_text("text,label\na,1\nb\nc,3\n")
    rows = load("a.csv", on_bad_row="skip")
    assert [(row["id"], row["text"]) for row in rows] == [(0, "a"), (2, "c")]
    assert rows.rejected == [
        {"place": "a.csv:3", "problem": "1 cell where the first line has 2", "id": 1, "row": ["b"]}
    ]


def test_no_rows_and_only_bad_rows_are_errors() -> None:
    Path("empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"empty.jsonl: no rows in this file"):
        load("empty.jsonl")
    name = jsonl("a.jsonl", {"text": "", "label": 1}, {"text": "", "label": 1})
    with pytest.raises(
        DataError, match=r"a.jsonl:1: all 2 rows are bad; the first: 'text' is empty"
    ):
        load(name, on_bad_row="skip")


def test_parquet_rows_that_json_cannot_hold_are_kept_all_the_same() -> None:
    pq.write_table(pa.table({"text": ["a", None], "label": [b"x", b"y"]}), "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet:1: 'label' is a bytes"):
        load("a.parquet")
    pq.write_table(
        pa.table({"text": ["a", None], "label": ["x", "y"], "raw": [b"x", b"y"]}), "a.parquet"
    )
    assert load("a.parquet", on_bad_row="skip").rejected[0]["row"] == {
        "text": None,
        "label": "y",
        "raw": "b'y'",
    }
