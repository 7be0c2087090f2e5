"""Rows as a sequence: their order, places, selections; and the Arrow file under them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lmkit.data import sources
from lmkit.data.check.columns import Roles
from lmkit.data.readers import ReadOptions
from lmkit.data.reading import load_rows
from lmkit.data.row import Row
from lmkit.data.rows import Rows, schema_of, write_rows
from lmkit.tasks.fields import Field

FIELDS = (Field("text", "text", ("sentence",)), Field("label", "label", ("class",), gold=True))


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(source: str | list[str]) -> Rows:
    named = sources.Source(source, "data.train", "train")
    return load_rows(named, Roles(FIELDS), ReadOptions(), Path("cache"))


def jsonl(name: str, *rows: dict[str, Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_rows_are_a_sequence_with_places_over_all_files() -> None:
    Path("a.csv").write_text('sentence,class,other\n"天\n地",x,1\nb,y,2\n')
    rows = load(
        [jsonl("b.jsonl", {"text": "c", "label": True}, {"text": "d", "label": 2.0}), "a.csv"]
    )
    assert (
        rows[:]
        == list(rows)
        == [
            {"id": 0, "text": "c", "label": "true"},
            {"id": 1, "text": "d", "label": "2"},
            {"id": 2, "text": "天\n地", "label": "x"},
            {"id": 3, "text": "b", "label": "y"},
        ]
    )
    assert [rows.place(i) for i in range(4)] == ["b.jsonl:1", "b.jsonl:2", "a.csv:2", "a.csv:4"]
    assert rows[-1] == rows[3]
    assert [(f.path, f.rows, f.bytes) for f in rows.files] == [
        ("b.jsonl", 2, Path("b.jsonl").stat().st_size),
        ("a.csv", 2, Path("a.csv").stat().st_size),
    ]
    assert rows.files[0].sha256 == sources.sha256_of(Path("b.jsonl"))
    assert rows.column("text").to_pylist() == ["c", "d", "天\n地", "b"]
    with pytest.raises(IndexError):
        rows[4]


def test_selections_compose_and_travel_to_other_processes() -> None:
    rows = load(jsonl("a.jsonl", *({"text": f"第{i}句", "label": i % 3} for i in range(2500))))
    chosen = rows.select([2400, 3, 4, 1000]).select([3, 1, 0])
    assert [row["id"] for row in chosen] == [1000, 3, 2400]
    assert chosen.place(2) == "a.jsonl:2401"
    assert chosen.column("label").to_pylist() == ["1", "0", "0"]
    assert pickle.loads(pickle.dumps(chosen))[:] == chosen[:]
    assert len({rows.fingerprint, chosen.fingerprint, rows.select([3]).fingerprint}) == 3
    assert [len(batch) for batch in rows.batches(1200)] == [1200, 1200, 100]
    assert next(rows.batches(1, names=["label"])) == [{"label": "0"}]


def test_an_arrow_file_is_whole_or_absent() -> None:
    def rows() -> Iterator[Row]:
        yield {"id": 0, "text": "a", "label": "x", "_file": 0, "_line": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(Path("a.arrow"), schema_of(list(FIELDS)), rows())
    assert not list(Path().iterdir())


def test_a_batch_of_the_arrow_file_ends_where_lists_are_long_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lmkit.data.rows.BATCH_CHARACTERS", 10)
    schema = pa.schema([("tags", pa.list_(pa.large_string()))])
    write_rows(Path("rows.arrow"), schema, [{"tags": ["O"] * 4}] * 7)
    with pa.ipc.open_file("rows.arrow") as file:
        assert [file.get_batch(i).num_rows for i in range(file.num_record_batches)] == [3, 3, 1]
