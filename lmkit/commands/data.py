"""``lmkit data``: what the data of a recipe looks like, before anything is trained. No torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.errors import RecipeError
from lmkit.flow.singles import check_repeat, is_repeated, single_runs
from lmkit.recipe import load_recipe
from lmkit.tasks.registry import names, problem

if TYPE_CHECKING:
    from lmkit.data.row import DataFile, Row
    from lmkit.data.rows import Rows
    from lmkit.tasks.answers import Answer
    from lmkit.tasks.fields import Field

SHOWN_LABELS, SHOWN_LETTERS = 30, 200


@dataclass(frozen=True)
class Lengths:
    """Characters of the rows of a split."""

    shortest: int
    median: int
    longest: int
    in_all: int


@dataclass(frozen=True)
class SplitSummary:
    """One split of the data, after all checks.

    Args:
        repeated: rows whose text an earlier row of the split has, too.
        in_train: rows whose text a row of training has; None: this is training.
        labels: how often each occurs; empty where rows have none.
    """

    rows: int
    left_out: int
    files: tuple[DataFile, ...]
    characters: Lengths
    repeated: int
    in_train: int | None
    labels: Mapping[str, int]
    first: Row

    def to_json(self) -> dict[str, Any]:
        files = [{"path": file.path, "rows": file.rows, "bytes": file.bytes} for file in self.files]
        values: dict[str, Any] = {
            "rows": self.rows,
            "left_out": self.left_out,
            "files": files,
            "characters": asdict(self.characters),
            "repeated": self.repeated,
        }
        if self.in_train is not None:
            values["in_train"] = self.in_train
        if self.labels:
            values["labels"] = dict(self.labels)
        return values | {"first": self.first}


@dataclass(frozen=True)
class DataSummary:
    """The data of a recipe, by split."""

    recipe: str
    task: str
    splits: Mapping[str, SplitSummary]

    def to_json(self) -> dict[str, Any]:
        splits = {name: split.to_json() for name, split in self.splits.items()}
        return {"recipe": self.recipe, "task": self.task, "splits": splits}

    def to_text(self) -> str:
        parts = [self._split_table()]
        labels = list(dict.fromkeys(chain(*(split.labels for split in self.splits.values()))))
        if labels:
            rows = [
                [label, *(split.labels.get(label, 0) for split in self.splits.values())]
                for label in labels[:SHOWN_LABELS]
            ]
            parts.append(console.table(["label", *self.splits], rows))
        if len(labels) > SHOWN_LABELS:
            parts.append(f"... and {len(labels) - SHOWN_LABELS} labels more (--json has all)")
        for name, split in self.splits.items():
            parts.append(f"{name}, the first row: {_short(split.first)}")
        return "\n\n".join(parts)

    def _split_table(self) -> str:
        rows = []
        for name, split in self.splits.items():
            lengths = split.characters
            middle = f"{lengths.shortest:,} / {lengths.median:,} / {lengths.longest:,}"
            in_train = "-" if split.in_train is None else f"{split.in_train:,}"
            counts = [f"{split.rows:,}", f"{split.left_out:,}", middle, f"{lengths.in_all:,}"]
            rows.append([name, *counts, f"{split.repeated:,}", in_train])
        header = ["split", "rows", "left out", "characters: shortest / median / longest"]
        return console.table([*header, "in all", "repeated", "also in train"], rows)


def look(source: str | Mapping[str, object], overrides: Sequence[str] = ()) -> DataSummary:
    """Summarise every split that the recipe names, after all checks.

    Raises:
        LmkitError: what training would refuse in the data.
    """
    recipe = load_recipe(source, overrides)
    if not recipe.task:
        raise RecipeError("no task", place="task", remedy=f"one of: {', '.join(names())}")
    if is_repeated(recipe):
        check_repeat(recipe)
        runs = single_runs(recipe)
        recipe = runs[0][1]
        console.say(f"{len(runs)} runs; this is the data of the first")
    # after the recipe is known to be right: mistakes in it answer at once
    from lmkit.data.splits import load_splits

    solved = problem(recipe.task)
    splits = load_splits(recipe, solved, wanted=("train", "validation", "test"))
    fields, answer = solved.fields(recipe, splits.facts), solved.answer(splits.facts)
    texts = {hash(text) for text in _texts(splits.rows["train"], fields)}
    summaries = {
        split: _summarise(rows, fields, answer, None if split == "train" else texts)
        for split, rows in splits.rows.items()
    }
    return DataSummary(recipe.name, recipe.task, summaries)


def _summarise(
    rows: Rows, fields: Sequence[Field], answer: Answer, train: set[int] | None
) -> SplitSummary:
    """Summarise one split; ``train``: hashes of the training texts."""
    lengths: list[int] = []
    repeated = in_train = 0
    earlier: set[int] = set()
    for text in _texts(rows, fields):
        lengths.append(len(text))
        key = hash(text)
        repeated += key in earlier
        in_train += train is not None and key in train
        earlier.add(key)
    return SplitSummary(
        rows=len(rows),
        left_out=len(rows.rejected),
        files=tuple(rows.files),
        characters=Lengths(min(lengths), round(median(lengths)), max(lengths), sum(lengths)),
        repeated=repeated,
        in_train=None if train is None else in_train,
        labels=_labels(rows, fields, answer),
        first=rows[0],
    )


def _texts(rows: Rows, fields: Sequence[Field]) -> Iterator[str]:
    """Yield what is read of each row as one text, as overlap with training is judged: case and white space aside."""
    from lmkit.evaluation.overlap import normalised

    names = [field.name for field in fields if not field.gold]
    for row in rows:
        values = [
            " ".join(row[name]) if isinstance(row[name], list) else str(row[name]) for name in names
        ]
        yield normalised("\n".join(values))


def _labels(rows: Rows, fields: Sequence[Field], answer: Answer) -> dict[str, int]:
    """Count how often each label occurs; the commonest first."""
    counts: Counter[str] = Counter()
    for name in (field.name for field in fields if field.gold):
        for row in rows:
            counts.update(answer.occurrences(row[name]))
    return dict(counts.most_common())


def _short(row: Row) -> str:
    text = json.dumps({key: value for key, value in row.items() if key != "id"}, ensure_ascii=False)
    return text if len(text) <= SHOWN_LETTERS else text[: SHOWN_LETTERS - 3] + "..."
