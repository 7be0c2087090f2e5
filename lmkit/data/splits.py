"""The rows of a recipe's splits, checked against each other. No torch: mistakes in the data answer at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit.data.check import Peek, find_rows, load_rows, peek
from lmkit.errors import RecipeError
from lmkit.recipe.schema import Recipe
from lmkit.tasks.base import Problem
from lmkit.tasks.fields import Field

if TYPE_CHECKING:
    from lmkit.data.rows import Rows

SLICES = ("length", "unknown", "fragmentation", "label")  # what eval.slices knows besides columns


def cache_folder() -> Path:
    """Where checked rows and tokens are kept: ``LMKIT_CACHE``, else ``lmkit`` in the user's cache folder."""
    if chosen := os.environ.get("LMKIT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmkit"


@dataclass(frozen=True)
class Splits:
    """Rows by split, and what the task learned from the training rows."""

    rows: dict[str, Rows]
    facts: dict[str, Any]

    @property
    def rejected(self) -> list[dict[str, Any]]:
        return [
            {"split": split, **row} for split, rows in self.rows.items() for row in rows.rejected
        ]


def load_splits(
    recipe: Recipe, problem: Problem, *, wanted: Sequence[str], facts: dict[str, Any] | None = None
) -> Splits:
    """Read and check the splits a command needs.

    Args:
        wanted: of train, validation, test; those that the recipe does not name are left out.
        facts: what a trained model already knows; None: learn it from the training rows.

    Raises:
        RecipeError: ``data.train`` is missing where facts are to be learned, or two keys contradict each other.
        DataError: something is wrong with a file or a row.
    """
    data = recipe.data
    if facts is None and data.train is None:
        raise RecipeError(
            "no data to learn from",
            place="data.train",
            remedy="give a path, list, glob, directory or hub id",
        )
    if data.validation is not None and data.validation_fraction is not None:
        raise RecipeError(
            "given beside data.validation",
            place="data.validation_fraction",
            remedy="keep one of the two",
        )
    given = [source for source in (data.train, data.validation, data.test) if source is not None]
    if data.columns and given and all(isinstance(source, dict) for source in given):
        raise RecipeError(
            "has no effect: the files are named by role",
            place="data.columns",
            remedy="leave it out: a line is a row of one column",
        )
    if data.fold is not None and data.test is not None:
        raise RecipeError(
            "given beside data.fold, which tests on data.train",
            place="data.test",
            remedy="keep one of the two",
        )
    if data.fold is not None and data.train is None:
        raise RecipeError(
            "no data to take the fold from",
            place="data.train",
            remedy="give it, or leave data.fold out",
        )
    from_train = data.validation_fraction is not None and bool(
        {"train", "validation"} & set(wanted)
    )
    if from_train and data.train is None:
        raise RecipeError(
            "a share of no rows: data.train is missing",
            place="data.validation_fraction",
            remedy="give data.train",
        )
    read = [split for split in wanted if getattr(data, split) is not None] + (
        ["train"]
        if (from_train or (data.fold and "test" in wanted)) and "train" not in wanted
        else []
    )
    fields = problem.fields(recipe, facts, None if facts is not None else _peek(recipe))
    for split in read:  # a file that is not there is said before another is read
        find_rows(getattr(data, split), key=f"data.{split}", fields=fields, folders=[Path.cwd()])
    from lmkit.data.labels import (
        check_labels,
        labels_of,
        prepare_tags,
        split_by_fold,
        split_by_hash,
    )

    rows = {split: _load(recipe, problem, fields, split) for split in dict.fromkeys(read)}
    gold = [field for field in fields if field.gold and field.kind in ("label", "labels", "tags")]
    if any(field.kind == "tags" for field in gold) and rows:
        known = data.labels if facts is None else facts["labels"]
        rows = prepare_tags(
            rows, on_bad_row=data.on_bad_row, repair=recipe.tagging.repair, known=known
        )
    everything = rows.get("train")  # labels are those of all folds
    if data.fold is not None and everything is not None:
        rows["train"], rows["test"] = split_by_fold(everything, data.fold)
    if from_train:
        assert data.validation_fraction is not None
        rows["train"], rows["validation"] = split_by_hash(rows["train"], data.validation_fraction)
    if facts is None:
        labels = data.labels or (
            labels_of(everything or rows["train"], gold[0].name) if gold else []
        )
        facts = problem.learn(rows["train"], labels)
    for field in gold:
        rows = {
            split: check_labels(
                found, field.name, facts["labels"], split=split, on_bad_row=data.on_bad_row
            )
            for split, found in rows.items()
        }
    return Splits({split: found for split, found in rows.items() if split in wanted}, facts)


def _peek(recipe: Recipe) -> Peek:
    data = recipe.data
    assert data.train is not None
    return peek(
        data.train,
        key="data.train",
        split="train",
        columns=data.columns,
        document=data.document,
        folders=[Path.cwd()],
    )


def _load(recipe: Recipe, problem: Problem, fields: Sequence[Field], split: str) -> Rows:
    data = recipe.data
    return load_rows(
        getattr(data, split),
        key=f"data.{split}",
        split=split,
        fields=fields,
        forms=problem.forms,
        columns=data.columns,
        on_bad_row=data.on_bad_row,
        document=data.document,
        max_rows=data.max_rows,
        slices=slices_of(recipe, problem, split),
        folders=[Path.cwd()],
        cache_dir=cache_folder(),
    )


def slices_of(recipe: Recipe, problem: Problem, split: str) -> list[str]:
    """The columns that ``eval.slices`` names and the task does not read, of the splits that are evaluated."""
    if split == "train" and recipe.data.validation_fraction is None and recipe.data.fold is None:
        return []
    known = {*SLICES, *(field.name for field in problem.fields(recipe))}
    return [name for name in dict.fromkeys(recipe.eval.slices) if name not in known]


def provenance(splits: Splits) -> list[dict[str, Any]]:
    """Every data file with its rows and sha256, for the manifest."""

    def described(split: str, rows: Rows) -> Iterable[dict[str, Any]]:
        return (
            {
                "split": split,
                "path": file.path,
                "rows": file.rows,
                "sha256": file.sha256,
                "bytes": file.bytes,
            }
            for file in rows.files
        )

    return [entry for split, rows in splits.rows.items() for entry in described(split, rows)]
