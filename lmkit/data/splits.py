"""Load the rows of a recipe's splits, checked against each other. No torch: mistakes in the data answer at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit.data.check.columns import Roles
from lmkit.data.readers import ReadOptions
from lmkit.data.reading import Peek, find_rows, load_rows, peek
from lmkit.data.sources import Source
from lmkit.errors import RecipeError
from lmkit.recipe.schema import Data, Recipe
from lmkit.records import DataFile
from lmkit.tasks.base import Problem
from lmkit.tasks.fields import Field

if TYPE_CHECKING:
    from lmkit.data.rows import Rows

SLICES = ("length", "unknown", "fragmentation", "label")  # what eval.slices knows besides columns


def cache_folder() -> Path:
    """Return where checked rows and tokens are kept: ``LMKIT_CACHE``, else ``lmkit`` in the user's cache folder."""
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
        raise _nothing_to_learn_from()
    takes_from_training = data.fold is not None or data.validation_fraction is not None
    if takes_from_training or data.columns:
        _refuse_contradictions(data, wanted)
    first_rows = None if facts is not None else peek_split(recipe, "train")
    fields = problem.fields(recipe, facts, first_rows)
    read = [split for split in dict.fromkeys(wanted) if getattr(data, split) is not None]
    if takes_from_training and "train" not in wanted and _needs_training_rows(data, wanted):
        read.append("train")
    for split in read:  # a file that is not there is said before another is read
        find_rows(_source(recipe, split), Roles(fields))
    from lmkit.data.check.labels import check_labels, labels_of

    rows = {split: _load(recipe, problem, fields, split) for split in read}
    gold = [field for field in fields if field.gold and field.kind in ("label", "labels", "tags")]
    if any(field.kind == "tags" for field in gold) and rows:
        rows = _with_tags_alike(rows, recipe, facts)
    all_training_rows = rows.get("train")  # labels are those of all folds
    if takes_from_training:
        rows = _set_aside(rows, data, wanted)
    if facts is None:
        labels = data.labels or []
        if gold and not labels:
            labels = labels_of(all_training_rows or rows["train"], gold[0])
        facts = problem.learn(rows["train"], labels)
        if gold:
            facts.setdefault("labels", list(labels))
    for field in gold:
        for split, checked in rows.items():
            rows[split] = check_labels(
                checked, field, facts["labels"], split=split, on_bad_row=data.on_bad_row
            )
    return Splits({split: rows[split] for split in rows if split in wanted}, facts)


def _nothing_to_learn_from() -> RecipeError:
    return RecipeError(
        "no data to learn from",
        place="data.train",
        remedy="give a path, list, glob, directory or hub id",
    )


def _with_tags_alike(
    rows: dict[str, Rows], recipe: Recipe, facts: dict[str, Any] | None
) -> dict[str, Rows]:
    """Write the tags of all splits in one scheme."""
    from lmkit.data.check.tags import prepare_tags

    data = recipe.data
    tags = data.labels if facts is None else facts["labels"]
    return prepare_tags(
        rows, on_bad_row=data.on_bad_row, repair=recipe.tagging.repair, model_tags=tags
    )


def _refuse_contradictions(data: Data, wanted: Sequence[str]) -> None:
    """Refuse keys of ``data`` that contradict each other, or lack ``data.train``."""
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
    if _takes_validation_from_training(data, wanted) and data.train is None:
        raise RecipeError(
            "a share of no rows: data.train is missing",
            place="data.validation_fraction",
            remedy="give data.train",
        )


def _takes_validation_from_training(data: Data, wanted: Sequence[str]) -> bool:
    return data.validation_fraction is not None and bool({"train", "validation"} & {*wanted})


def _needs_training_rows(data: Data, wanted: Sequence[str]) -> bool:
    """Tell whether a split is taken from the training rows."""
    is_folded = bool(data.fold) and "test" in wanted
    return _takes_validation_from_training(data, wanted) or is_folded


def _set_aside(rows: dict[str, Rows], data: Data, wanted: Sequence[str]) -> dict[str, Rows]:
    """Split test and validation rows off the training rows, as ``fold`` and ``validation_fraction`` say."""
    from lmkit.data.folds import split_by_fold, split_by_hash

    split = dict(rows)
    if data.fold is not None and "train" in split:
        split["train"], split["test"] = split_by_fold(split["train"], data.fold)
    if _takes_validation_from_training(data, wanted):
        assert data.validation_fraction is not None
        split["train"], split["validation"] = split_by_hash(
            split["train"], data.validation_fraction
        )
    return split


def peek_split(recipe: Recipe, split: str) -> Peek:
    """Look at the first rows of a split, unchecked: they tell which fields the data has."""
    return peek(_source(recipe, split), recipe.data.columns, recipe.data.document)


def _source(recipe: Recipe, split: str) -> Source:
    return Source(getattr(recipe.data, split), f"data.{split}", split)


def _load(recipe: Recipe, problem: Problem, fields: Sequence[Field], split: str) -> Rows:
    data = recipe.data
    slices = slices_of(recipe, problem, split)
    roles = Roles(fields, forms=problem.forms, columns=data.columns, slices=slices)
    options = ReadOptions(data.on_bad_row, data.document, data.max_rows)
    return load_rows(_source(recipe, split), roles, options, cache_folder())


def slices_of(recipe: Recipe, problem: Problem, split: str) -> list[str]:
    """Return the columns that ``eval.slices`` names and the task does not read, of a split that is evaluated."""
    if split == "train" and recipe.data.validation_fraction is None and recipe.data.fold is None:
        return []
    no_columns = {*SLICES, *(field.name for field in problem.fields(recipe))}
    return [name for name in dict.fromkeys(recipe.eval.slices) if name not in no_columns]


def provenance(splits: Splits) -> list[DataFile]:
    """Return every data file with its rows and sha256, for the manifest."""
    return [
        DataFile(split, file.path, file.rows, file.sha256, file.bytes)
        for split, rows in splits.rows.items()
        for file in rows.files
    ]
