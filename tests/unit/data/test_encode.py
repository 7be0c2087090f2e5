"""Rows as tokens: grouped into examples, left out with their place, and kept until anything that decides them changes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmkit.data import encode as encoding
from lmkit.data.check.columns import Roles
from lmkit.data.encode import Encoded, say_cut
from lmkit.data.readers import ReadOptions
from lmkit.data.reading import load_rows
from lmkit.data.rows import Rows
from lmkit.data.sources import Source
from lmkit.errors import DataError
from lmkit.models.tokenizer import tokenizer_hash
from lmkit.recipe import Recipe
from lmkit.tasks.base import TooLong
from lmkit.tasks.registry import problem

TEXTS = [
    "Call me Ishmael.",
    "It is a way I have of driving off the spleen. " * 6,
    "So lucky.",
    "There now is your insular city of the Manhattoes.",
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))


def rows_of(tmp_path: Path, task: str, *rows: dict[str, Any]) -> Rows:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(str(file), "data.train", "train")
    roles = Roles(problem(task).fields(Recipe(task=task)))
    return load_rows(source, roles, ReadOptions(), tmp_path / "cache")


def encode(rows: Rows, task: Any, *, pack: bool = False) -> Encoded:
    return encoding.encode(rows, task, tokenizer_hash(task.tokenizer), pack=pack)


def texts(tmp_path: Path) -> Rows:
    return rows_of(tmp_path, "mlm", *({"text": text} for text in TEXTS))


def task_of(tiny: Any, name: str, **sections: Any) -> Any:
    """The small task with other options; its tokenizer stays."""
    made = tiny.prepared(tiny.recipe(name)).task
    return made.problem.task(tiny.merged(made.recipe, **sections), made.facts, made.tokenizer)


def test_an_example_is_all_pieces_of_a_row(tiny: Any, tmp_path: Path) -> None:
    found = encode(texts(tmp_path), task_of(tiny, "mlm"))
    assert len(found) == len(found.rows) == 4
    assert list(chain.from_iterable(found.groups)) == list(range(len(found.pieces)))
    assert len(found.groups[1]) > 2
    for number in range(4):
        example = found.example(number)
        assert [piece["piece"] for piece in example] == list(found.groups[number])
        assert {piece["row"] for piece in example} == {number}
        assert sum(piece["length"] for piece in example) == found.lengths[number]
        assert all(len(piece["input_ids"]) == piece["length"] for piece in example)
    assert found.tokens == found.lengths.sum()


def test_packed_examples_fill_the_length_with_every_piece_once(tiny: Any, tmp_path: Path) -> None:
    apart = encode(texts(tmp_path), task_of(tiny, "mlm"))
    packed = encode(texts(tmp_path), task_of(tiny, "mlm"), pack=True)
    assert sorted(chain.from_iterable(packed.groups)) == list(range(len(apart.pieces)))
    assert packed.lengths.max() <= 32
    assert packed.tokens == apart.tokens
    assert any(
        len({piece["row"] for piece in packed.example(number)}) > 1 for number in range(len(packed))
    )


def test_an_unpacked_example_takes_a_row_a_piece_as_long_as_its_longest(
    tiny: Any, tmp_path: Path
) -> None:
    packed = encode(texts(tmp_path), task_of(tiny, "mlm"), pack=True)
    assert (packed.slots(packed=True) == packed.lengths).all()
    longest = [
        len(example) * max(piece["length"] for piece in example)
        for example in map(packed.example, range(len(packed)))
    ]
    assert packed.slots(packed=False).tolist() == longest


def test_the_sides_of_a_pair_are_its_source_and_its_target(tiny: Any) -> None:
    pairs = tiny.prepared(tiny.recipe("translation")).encoded["train"]
    each = [(len(piece["input_ids"]), len(piece["labels"])) for piece in pairs.pieces]
    assert [tuple(sides) for sides in pairs.sides()] == each
    texts = tiny.prepared(tiny.recipe("classification")).encoded["train"]
    assert texts.sides().tolist() == [[tokens] for tokens in texts.lengths]


def test_what_was_encoded_is_found_again(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(tiny, "mlm")
    first = encode(texts(tmp_path), task)
    monkeypatch.setattr(type(task), "encode", None)
    again = encode(
        texts(tmp_path),
        task_of(tiny, "mlm", seed=99, train={"batch_size": 9}, masking={"share": 0.5}),
    )
    assert again.pieces[:] == first.pieces[:]
    assert encode(texts(tmp_path), task, pack=True).pieces[:] == first.pieces[:]


@pytest.mark.parametrize(
    "change", ["tokenizer", "max_length", "rows", "long_text", "labels", "task"]
)
def test_what_decides_the_tokens_makes_them_anew(
    tiny: Any, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale cache was used with another tokenizer [axolotl#1265]."""
    labelled = [{"text": text, "label": "positive"} for text in TEXTS]
    name = "classification" if change in ("long_text", "labels") else "mlm"
    encode(rows_of(tmp_path, name, *labelled), task_of(tiny, name))
    calls: list[int] = []
    task, rows = task_of(tiny, name), rows_of(tmp_path, name, *labelled)
    if change == "tokenizer":
        task = task_of(tiny, name)
        task.tokenizer = tiny.prepared(
            tiny.recipe(name, tokenizer={"train": {"vocab_size": 100}})
        ).task.tokenizer
    elif change == "max_length":
        task = task_of(tiny, name, data={"max_length": 31})
    elif change == "rows":
        rows = rows.select([0, 1, 2])
    elif change == "long_text":
        task = task_of(tiny, name, data={"long_text": "head"})
    elif change == "labels":
        task = task.problem.task(task.recipe, {"labels": ["positive", "negative"]}, task.tokenizer)
    else:
        task = task_of(tiny, "clm")
    made = type(task).encode
    monkeypatch.setattr(
        type(task), "encode", lambda self, batch: calls.append(len(batch)) or made(self, batch)
    )
    encode(rows, task)
    assert calls


def test_an_encoding_that_fails_leaves_nothing_behind(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(tiny, "mlm")
    made = type(task).encode
    monkeypatch.setattr(encoding, "BATCH_ROWS", 2)

    def fall(self: Any, batch: Sequence[dict[str, Any]]) -> Any:
        if batch[0]["id"] == 2:
            raise OSError("no space left on device")
        return made(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(type(task), "encode", fall)
        with pytest.raises(OSError, match="no space left"):
            encode(texts(tmp_path), task)
    assert len(encode(texts(tmp_path), task)) == 4


def test_batches_of_rows_change_nothing(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encode(texts(tmp_path), task_of(tiny, "mlm")).pieces[:]
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(encoding, "BATCH_ROWS", 2)
    assert encode(texts(tmp_path), task_of(tiny, "mlm")).pieces[:] == whole


def labelled(tmp_path: Path) -> Rows:
    return rows_of(
        tmp_path, "classification", *({"text": text, "label": "positive"} for text in TEXTS)
    )


@pytest.mark.parametrize("batch_rows", [1, 2, 1000])
def test_a_row_that_is_too_long_is_refused_at_its_line(
    tiny: Any, tmp_path: Path, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "BATCH_ROWS", batch_rows)
    with pytest.raises(
        TooLong, match=r"rows\.jsonl:2: \d+ tokens, more than data\.max_length = 32"
    ):
        encode(labelled(tmp_path), task_of(tiny, "classification", data={"long_text": "error"}))


@pytest.mark.parametrize("batch_rows", [1, 2, 1000])
def test_a_row_that_is_too_long_is_left_out_and_kept_in_mind(
    tiny: Any, tmp_path: Path, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "BATCH_ROWS", batch_rows)
    task = task_of(tiny, "classification", data={"long_text": "error", "on_bad_row": "skip"})
    for _ in range(2):  # the second time from the cache
        found = encode(labelled(tmp_path), task)
        assert [row["text"] for row in found.rows] == [TEXTS[0], TEXTS[2], TEXTS[3]]
        assert found.pieces.column("row").tolist() == [0, 1, 2]
        (rejected,) = found.rows.rejected
        assert (rejected["id"], rejected["row"]["text"]) == (1, TEXTS[1])
        assert rejected["place"].endswith("rows.jsonl:2")
        assert "tokens, more than 32" in rejected["problem"]


def test_no_row_left_is_said(tiny: Any, tmp_path: Path) -> None:
    rows = labelled(tmp_path).select([1])
    with pytest.raises(DataError, match="no row is left: all are too long"):
        encode(
            rows, task_of(tiny, "classification", data={"long_text": "error", "on_bad_row": "skip"})
        )


def test_rows_that_are_cut_are_counted(tiny: Any, tmp_path: Path) -> None:
    assert (
        encode(labelled(tmp_path), task_of(tiny, "classification", data={"long_text": "head"})).cut
        == 1
    )
    assert encode(labelled(tmp_path), task_of(tiny, "classification")).cut == 0


def test_encoded_data_travels_to_worker_processes(tiny: Any, tmp_path: Path) -> None:
    found = encode(texts(tmp_path), task_of(tiny, "mlm"))
    there = pickle.loads(pickle.dumps(found))
    assert there.example(1) == found.example(1)
    assert np.array_equal(there.lengths, found.lengths)


@pytest.mark.parametrize(
    ("long_text", "part"),
    [("head", "the end"), ("head_tail", "the middle"), ("windows", "the end of the shorter text")],
)
def test_what_of_a_row_was_left_out_is_said(
    tiny: Any, long_text: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.recipe("classification", data={"long_text": long_text}).data
    say_cut(0, 9, data, place="data.test")
    assert capsys.readouterr().err == ""
    say_cut(2, 9, data, place="data.test")
    said = f"warning: data.test: {part} of 2 of 9 rows was left out at 32 tokens (data.long_text={long_text})\n"
    assert capsys.readouterr().err == said
