"""Encode rows as pieces of tokens, cached by content and memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from lmkit import console
from lmkit.batch import Piece, Row
from lmkit.data.pieces import Pieces, write_pieces
from lmkit.data.plan import Groups, by_row, fill
from lmkit.data.rows import Rows, is_whole
from lmkit.data.splits import cache_folder
from lmkit.errors import DataError
from lmkit.recipe.schema import Data
from lmkit.tasks.base import Task, TooLong

BATCH_ROWS = 1000
FORMAT = 3  # of the cached files


@dataclass(frozen=True)
class Encoded:
    """The pieces of one split, grouped into examples.

    Args:
        rows: the rows they were made of, those left out as too long excepted.
        pieces: with the task's columns, ``row`` and ``length``; memory-mapped.
        groups: which pieces make each example.
        lengths: ``(examples,)`` tokens.
        cut: rows of which a part was left out (``data.long_text``).
    """

    rows: Rows
    pieces: Pieces
    groups: Groups
    lengths: np.ndarray
    cut: int

    def __len__(self) -> int:
        return len(self.groups)

    def slots(self, *, packed: bool) -> np.ndarray:
        """Return the tokens that each example takes in a batch, with the padding within it.

        Args:
            packed: the pieces of an example share one row; without, each has its own, as long as the longest.
        """
        if packed:
            return self.lengths
        return np.asarray(self.groups.largest(self.pieces.column("length")) * self.groups.sizes)

    def sides(self) -> np.ndarray:
        """``(examples, sides)`` tokens of what a batch pads apart: source and target where the labels are the target."""
        names = [name for name in ("input_ids", "labels") if self.pieces.is_list(name)]
        return np.stack([self.groups.sums(self.pieces.sizes(name)) for name in names], axis=1)

    def example(self, number: int) -> list[Piece]:
        """Return the pieces of an example, each with its number in ``piece``."""
        return self.examples([number])[0]

    def examples(self, numbers: Sequence[int]) -> list[list[Piece]]:
        """Return the pieces of several examples, read at once."""
        groups = [self.groups[number] for number in numbers]
        rows = iter(self.take([piece for group in groups for piece in group]))
        return [[next(rows) for _ in group] for group in groups]

    def take(self, numbers: Sequence[int]) -> list[Piece]:
        """Return these pieces, each with its number in ``piece``."""
        return [
            piece | {"piece": number}
            for number, piece in zip(numbers, self.pieces.take(numbers), strict=True)
        ]

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


def encode(rows: Rows, task: Task, tokenizer_hash: str, *, pack: bool = False) -> Encoded:
    """Tokenise a split, or take it from the cache.

    The key of the cache has the content of the tokenizer and of the rows, the options that decide
    the encoding, and the task's labels; nothing else.

    Args:
        tokenizer_hash: of all that decides how the task's tokenizer makes tokens of text.
        pack: examples are the pieces that fill ``max_length`` tokens, not the pieces of a row.

    Raises:
        DataError: a row is too long and ``data.long_text`` or the task allows no cut or window.
    """
    path = _cache_path(rows, task, tokenizer_hash)
    rejected_path = path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not (is_whole(path) and rejected_path.is_file()):
            rejected: list[dict[str, Any]] = []
            temporary = path.with_suffix(".tmp")
            write_pieces(temporary, _encoded_batches(rows, task, rejected))
            rejected_path.write_text(json.dumps(rejected), encoding="utf-8")
            temporary.replace(path)
    rejected = json.loads(rejected_path.read_text(encoding="utf-8"))
    if rejected:
        positions = [entry.pop("position") for entry in rejected]
        rows = rows.without(positions, rejected=rows.rejected + rejected)
    pieces = Pieces(path)
    lengths = pieces.column("length")
    groups = fill(lengths, task.max_length) if pack else by_row(pieces.column("row"))
    cut = int(pieces.column("cut").sum()) if "cut" in pieces.names else 0
    return Encoded(rows, pieces, groups, groups.sums(lengths), cut)


def _cache_path(rows: Rows, task: Task, tokenizer_hash: str) -> Path:
    data = task.recipe.data
    options = [
        FORMAT,
        task.name,
        data.max_length,
        data.overlap,
        data.long_text,
        data.on_bad_row,
        task.facts.get("labels"),
        task.encoding_options(),
    ]
    content = json.dumps([options, tokenizer_hash, rows.fingerprint])
    name = hashlib.sha256(content.encode()).hexdigest()[:32]
    return cache_folder() / f"pieces-{name}.arrow"


def say_left_out(encoded: Encoded, data: Data, *, split: str) -> None:
    """Report how many rows of a split were cut, and how many were left out."""
    say_cut(encoded.cut, len(encoded.rows), data, place=f"data.{split}")
    rejected = encoded.rows.rejected
    if rejected:
        first = f"{rejected[0]['place']}: {rejected[0]['problem']}"
        console.warn(f"data.{split}: {len(rejected)} rows left out, the first at {first}")


CUT_PARTS = {"head_tail": "the middle", "windows": "the end of the shorter text"}


def say_cut(cut: int, rows: int, data: Data, *, place: str) -> None:
    """Report how many of these rows were cut, and which part of them was not read."""
    if cut:
        part = CUT_PARTS.get(data.long_text, "the end")
        limit = f"{data.max_length} tokens (data.long_text={data.long_text})"
        console.warn(f"{place}: {part} of {cut} of {rows} rows was left out at {limit}")


def _encoded_batches(
    rows: Rows, task: Task, rejected: list[dict[str, Any]]
) -> Iterator[dict[str, list[Any]]]:
    """Yield columns batch by batch; ``row`` counts the rows that stay."""
    rows_before = 0
    starts = range(0, len(rows), BATCH_ROWS)
    for start in console.progress_bar(starts, total=len(starts), what="tokenising", unit="batch"):
        batch = list(enumerate(rows[start : start + BATCH_ROWS], start))
        try:
            columns = task.encode([row for _, row in batch])
        except TooLong as error:
            batch = _without_long(batch, error, rows, task, rejected)
            if not batch:
                continue
            columns = task.encode([row for _, row in batch])
        columns["row"] = [rows_before + row for row in columns["row"]]
        rows_before += len(batch)
        if columns["row"]:
            yield columns
    if not rows_before:
        raise DataError(
            "no row is left: all are too long", place=rows.place(0), remedy="raise data.max_length"
        )


def _without_long(
    batch: list[tuple[int, Row]],
    error: TooLong,
    rows: Rows,
    task: Task,
    rejected: list[dict[str, Any]],
) -> list[tuple[int, Row]]:
    """Return a batch without its rows that are too long, which go to ``rejected``."""
    for at, length in error.rows:
        position, row = batch[at]
        place = rows.place(position)
        if task.recipe.data.on_bad_row == "error":
            raise TooLong([(at, length)], error.max_length, place=place) from None
        problem = f"{length} tokens, more than {error.max_length}"
        entry = {"place": place, "problem": problem, "id": row["id"], "row": row}
        rejected.append({"position": position, **entry})
    long = {at for at, _ in error.rows}
    return [entry for at, entry in enumerate(batch) if at not in long]
