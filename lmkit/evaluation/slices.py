"""The metrics on parts of a split: by length, unknown and fragmented words, label, or any column of the data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmkit.data.encode import Encoded
from lmkit.data.row import SLICE_COLUMN
from lmkit.errors import RecipeError
from lmkit.records import Interval, Record, Stored
from lmkit.tasks.answers import Answer
from lmkit.tasks.base import Task
from lmkit.tasks.words import IDEOGRAPH, word_numbers

PARTS = 4  # quartiles
MOST = 24  # slices of one name: of a column with more values the most frequent, and all others together
BATCH_ROWS = 1000
WORD = re.compile(rf"{IDEOGRAPH.pattern}|\S+?(?={IDEOGRAPH.pattern}|\s|$)")
Members = dict[str, NDArray[np.intp]]  # name of a slice -> its rows


@dataclass(frozen=True)
class Slice(Stored):
    """The metrics of some examples, with the name of what they have in common."""

    slice: str
    examples: int
    metrics: Mapping[str, Interval]


def slice_metrics(
    names: Sequence[str],
    records: Sequence[Record],
    encoded: Encoded,
    task: Task,
    measured: Callable[[NDArray[np.intp]], Mapping[str, Interval]],
) -> dict[str, list[Slice]]:
    """Measure the slices of every name of ``eval.slices``.

    Args:
        measured: the metrics of some rows.
    """
    return {
        name: [
            Slice(label, len(rows), measured(rows))
            for label, rows in members(name, records, encoded, task).items()
        ]
        for name in names
    }


def members(name: str, records: Sequence[Record], encoded: Encoded, task: Task) -> Members:
    """Sort rows into slices; with several labels (entities) to a row, a row is in a slice of each."""
    answer = task.answer
    if name == "length":
        return by_range([num_words(record, answer) for record in records])
    if name in ("unknown", "fragmentation"):
        return by_range(word_shares(records, task, name), shares=True)
    if name == "label":
        return by_value([answer.labels(record) for record in records])
    if name in encoded.rows.names:
        return by_column(encoded.rows.column(name).to_pylist())
    return by_column(encoded.rows.column(SLICE_COLUMN + name).to_pylist())


def num_words(record: Record, answer: Answer) -> int:
    """Count the words of what the model read: a tagger's, or else parted by white space; an ideograph is a word.

    >>> num_words({"text": "two words"}, Answer()), num_words({"text": "很好 ok"}, Answer())
    (2, 3)
    """
    words = answer.words(record)
    return len(WORD.findall(answer.text(record))) if words is None else len(words)


def word_shares(records: Sequence[Record], task: Task, name: str) -> list[float]:
    """Return the share of unknown tokens of each row, or of words that are more than one token."""
    tokenizer = task.tokenizer
    if name == "unknown" and tokenizer.unk_token_id is None:
        raise RecipeError(
            "this tokenizer writes every text, so there are no unknown tokens",
            place="eval.slices",
            remedy="leave unknown out, or take fragmentation",
        )
    if name == "fragmentation" and not tokenizer.is_fast:
        raise RecipeError(
            "this tokenizer does not say which tokens make a word",
            place="eval.slices",
            remedy="leave fragmentation out",
        )
    answer = task.answer
    shares: list[float] = []
    for start in range(0, len(records), BATCH_ROWS):
        batch = records[start : start + BATCH_ROWS]
        words = answer.words(batch[0]) is not None
        texts: Any = [answer.words(record) or answer.text(record) for record in batch]
        encoded = tokenizer(
            texts,
            add_special_tokens=False,
            is_split_into_words=words,
            return_offsets_mapping=not words,
            verbose=False,
        )
        for number, ids in enumerate(encoded["input_ids"]):
            if name == "unknown":
                shares.append(ids.count(tokenizer.unk_token_id) / max(1, len(ids)))
                continue
            owners = encoded.word_ids(number)
            if not words:
                owners = word_numbers(texts[number], owners, encoded["offset_mapping"][number])
            shares.append(_share_of_fragmented(owners))
    return shares


def _share_of_fragmented(owners: Sequence[int | None]) -> float:
    """Return the share of words that are more than one token; ``owners`` are the words of the tokens."""
    pieces = Counter(owner for owner in owners if owner is not None and owner >= 0)
    return sum(count > 1 for count in pieces.values()) / max(1, len(pieces))


def by_range(values: Sequence[float], *, shares: bool = False) -> Members:
    """Sort rows by quartiles of a number, equal numbers together; rows without one (nan) apart, as are shares of zero.

    >>> {name: rows.tolist() for name, rows in by_range([1, 1, 2, 3, 9]).items()}
    {'1': [0, 1], '2': [2], '3 – 9': [3, 4]}
    """
    numbers = np.asarray(values, np.float64)
    slices: Members = {}
    if shares and (numbers == 0).any():
        slices["0 %"] = np.flatnonzero(numbers == 0)
    rest = np.flatnonzero(~np.isnan(numbers) & ((numbers != 0) if shares else True))
    if len(rest):
        ordered = np.sort(numbers[rest])
        edges = np.unique(ordered[[(len(ordered) * part) // PARTS for part in range(PARTS)]])
        owner = np.searchsorted(edges, numbers[rest], side="right") - 1
        for part in range(len(edges)):
            rows = rest[owner == part]
            low, high = numbers[rows].min(), numbers[rows].max()
            texts = [f"{100 * end:.0f} %" if shares else f"{end:.6g}" for end in (low, high)]
            label = texts[0] if texts[0] == texts[1] else f"{texts[0]} – {texts[1]}"
            slices[label] = np.concatenate([slices[label], rows]) if label in slices else rows
    if np.isnan(numbers).any():
        slices["(empty)"] = np.flatnonzero(np.isnan(numbers))
    return slices


def by_column(values: Sequence[Any]) -> Members:
    """Sort rows by the value of a column, or where it holds many different numbers by their quartiles."""
    texts = [
        "" if value is None else " ".join(value) if isinstance(value, list) else str(value)
        for value in values
    ]
    distinct = set(texts) - {""}
    if len(distinct) > MOST // 2 and all(
        re.fullmatch(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", text) for text in distinct
    ):
        return by_range([float(text) if text else float("nan") for text in texts])
    return by_value([[text or "(empty)"] for text in texts])


def by_value(values: Sequence[Sequence[str]]) -> Members:
    """Sort rows by value, the most frequent first; beyond 24 values the rarest together."""
    counts = Counter(value for row in values for value in row)
    frequent = [value for value, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    shown = frequent if len(frequent) <= MOST else frequent[: MOST - 1]
    slices = {value: [i for i, row in enumerate(values) if value in row] for value in shown}
    if rare := set(frequent[len(shown) :]):
        slices[f"({len(rare)} others)"] = [i for i, row in enumerate(values) if rare & set(row)]
    return {value: np.array(rows, np.intp) for value, rows in slices.items()}
