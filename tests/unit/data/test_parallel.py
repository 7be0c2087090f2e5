"""Two text files, line by line: what makes a row, and what is said where they do not fit."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmkit.data.check.columns import Roles
from lmkit.data.readers import ReadOptions
from lmkit.data.reading import load_rows
from lmkit.data.row import OnBadRow
from lmkit.data.rows import Rows
from lmkit.data.sources import SAMPLES, Source
from lmkit.data.splits import load_splits, provenance
from lmkit.errors import DataError, RecipeError
from lmkit.recipe import load_recipe
from lmkit.recipe.load import dump_recipe
from lmkit.recipe.schema import Recipe
from lmkit.tasks.translation.problem import TRANSLATION

FIELDS = TRANSLATION.fields(Recipe())


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(
    source: Any, *, on_bad_row: OnBadRow = "error", max_rows: int | None = None, **roles: Any
) -> Rows:
    roles = {"fields": FIELDS} | roles
    named = Source(source, "data.train", "train")
    options = ReadOptions(on_bad_row, max_rows=max_rows)
    return load_rows(named, Roles(**roles), options, Path("cache"))


def pair(name: str, english: str, german: str) -> dict[str, str]:
    Path(f"{name}.en").write_text(english)
    Path(f"{name}.de").write_text(german)
    return {"source": f"{name}.en", "target": f"{name}.de"}


def test_real_rows_are_those_of_the_tsv() -> None:
    with gzip.open(SAMPLES / "tatoeba_en_es/train.tsv.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][:200]
    for column, name in enumerate(("train.en.gz", "train.es")):
        text = "".join(row[column] + "\n" for row in rows)
        Path(name).write_bytes(
            gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
        )
    found = load({"source": "train.en.gz", "target": "train.es"})
    expected = load(
        "sample:tatoeba_en_es/train.tsv.gz", columns={"source": "0", "target": "1"}, max_rows=200
    )
    assert found[:] == expected[:]
    assert found.place(7) == "train.en.gz:8"
    assert [(file.path, file.rows, len(file.sha256)) for file in found.files] == [
        ("train.en.gz", 200, 64),
        ("train.es", 200, 64),
    ]


def test_lists_belong_together_in_their_order() -> None:
    first, second = pair("a", "one\ntwo\n", "eins\nzwei\n"), pair("b", "three\n", "drei\n")
    found = load({role: [first[role], second[role]] for role in first})
    assert [(row["id"], row["source"], row["target"]) for row in found] == [
        (0, "one", "eins"),
        (1, "two", "zwei"),
        (2, "three", "drei"),
    ]
    assert found.place(2) == "b.en:1"
    assert load({"source": "?.en", "target": "?.de"})[:] == found[:]
    with pytest.raises(DataError, match="unequal numbers of files: 2 for source, 1 for target"):
        load({"source": ["a.en", "b.en"], "target": "a.de"})


def test_swapped_roles_are_other_rows() -> None:
    files = pair("a", "one\n", "eins\n")
    assert load(files)[0]["source"] == "one"
    assert load({"source": files["target"], "target": files["source"]})[0]["source"] == "eins"


@pytest.mark.parametrize(
    ("english", "german", "counts"), [("1\n2\n3\n", "1\n2\n", "3|2"), ("1\n", "1\n2\n\n4", "1|4")]
)
def test_different_numbers_of_lines_are_named(english: str, german: str, counts: str) -> None:
    left, right = counts.split("|")
    with pytest.raises(
        DataError, match=rf"unequal numbers of lines: a\.en has {left}, a\.de has {right}"
    ):
        load(pair("a", english, german))


def test_a_line_is_blank_in_one_file() -> None:
    files = pair("a", "one\n\nthree\nfour\n\n", "eins\n\n \nvier\nfünf\n")
    with pytest.raises(DataError, match=r"a\.de:3: 'target' is blank"):
        load(files)
    found = load(files, on_bad_row="skip")
    # the second line is blank on both sides, and no row at all
    assert [(row["id"], row["source"]) for row in found] == [(0, "one"), (2, "four")]
    assert [(bad["place"], bad["problem"], bad["id"]) for bad in found.rejected] == [
        ("a.de:3", "'target' is blank", 1),
        ("a.en:5", "'source' is empty", 3),
    ]
    assert [file.rows for file in found.files] == [4, 4]
    assert found.place(1) == "a.en:4"


def test_roles_and_files_are_checked() -> None:
    pair("a", "one\n", "eins\n")
    with pytest.raises(DataError, match="this task has no column 'taget'\n  did you mean 'target'"):
        load({"source": "a.en", "taget": "a.de"})
    with pytest.raises(
        DataError,
        match=r"data\.train: no file for 'target'\n  for example \{source: FILE, target: FILE\}",
    ):
        load({"source": "a.en"})
    with pytest.raises(
        DataError, match=r"data\.train\.target: no such file: a\.dee; did you mean a\.de\?"
    ):
        load({"source": "a.en", "target": "a.dee"})
    Path("a.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"data\.train\.target: not a text file: a\.jsonl"):
        load({"source": "a.en", "target": "a.jsonl"})
    with pytest.raises(DataError, match="a directory"):
        load({"source": ".", "target": "a.de"})


def test_sources_alone_are_read_without_gold() -> None:
    assert load({"source": pair("a", "one\n", "eins\n")["source"]}, with_gold=False)[:] == [
        {"id": 0, "source": "one"}
    ]


@pytest.mark.parametrize(
    "names",
    [("train.en", "train.de"), ("train.en.txt", "train.de.txt"), ("train.en.gz", "train.de.gz")],
)
def test_one_of_two_files_says_how_both_are_named(names: tuple[str, str]) -> None:
    Path("dev.en.txt").write_text("another pair\n")
    for name in names:
        Path(name).write_bytes(gzip.compress(b"a\n") if name.endswith(".gz") else b"a\n")
    first, second = names
    with pytest.raises(DataError) as error:
        load(first)
    assert f"data.train={{source: {first}, target: {second}}}" in (error.value.remedy or "")
    Path(first.replace("en", "fr")).write_text("a\n")  # now it is not clear which one is meant
    with pytest.raises(DataError) as error:
        load(first)
    assert "data.train={" not in (error.value.remedy or "")


def recipe_of(source: Any, overrides: tuple[str, ...] = ()) -> Any:
    return load_recipe(
        {"task": "translation", "model": {"preset": "marian-nano"}, "data": {"train": source}},
        overrides,
    )


def test_a_recipe_keeps_where_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    pair("train", "one\n", "eins\n")
    Path("recipe.yaml").write_text(
        "task: translation\ndata: {train: {source: train.en, target: [train.de]}}\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("project/recipe.yaml")
    assert recipe.data.train == {"source": "project/train.en", "target": ["project/train.de"]}
    written = yaml.safe_load(dump_recipe(recipe))["data"]["train"]
    assert written == {"source": str(folder / "train.en"), "target": [str(folder / "train.de")]}
    assert load_recipe(yaml.safe_load(dump_recipe(recipe))).data.train == written


def test_both_files_are_given_as_key_and_value() -> None:
    pair("a", "one\n", "eins\n")
    recipe = recipe_of(
        "x.tsv",
        (
            "data.train={source: a.en, target: a.de}",
            "data.validation.source=a.en",
            "data.validation.target=a.de",
        ),
    )
    splits = load_splits(recipe, TRANSLATION, wanted=("train", "validation"))
    assert splits.rows["validation"][0]["target"] == "eins"
    assert [(file.split, file.path) for file in provenance(splits)] == [
        ("train", "a.en"),
        ("train", "a.de"),
        ("validation", "a.en"),
        ("validation", "a.de"),
    ]
    with pytest.raises(RecipeError, match=r"data\.columns: has no effect"):
        load_splits(
            recipe_of({"source": "a.en", "target": "a.de"}, ("data.columns={source: 0}",)),
            TRANSLATION,
            wanted=("train",),
        )
