"""The rows of a recipe's splits, checked against each other. No torch: mistakes in the data answer at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmkit.data.check import load_rows
from lmkit.data.labels import check_labels, labels_of, prepare_tags, split_by_fold, split_by_hash
from lmkit.data.rows import Rows
from lmkit.errors import RecipeError
from lmkit.recipe.schema import Recipe
from lmkit.tasks.base import Task


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
        return [{"split": split, **row} for split, rows in self.rows.items() for row in rows.rejected]


def load_splits(recipe: Recipe, task: type[Task], *, wanted: Sequence[str], facts: dict[str, Any] | None = None) -> Splits:
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
        raise RecipeError("no data to learn from", place="data.train", remedy="give a path, list, glob, directory or hub id")
    if data.validation is not None and data.validation_fraction is not None:
        raise RecipeError("given beside data.validation", place="data.validation_fraction", remedy="keep one of the two")
    if data.fold is not None and data.test is not None:
        raise RecipeError("given beside data.fold, which tests on data.train", place="data.test", remedy="keep one of the two")
    if data.fold is not None and data.train is None:
        raise RecipeError("no data to take the fold from", place="data.train", remedy="give it, or leave data.fold out")
    from_train = data.validation_fraction is not None and bool({"train", "validation"} & set(wanted))
    read = [split for split in wanted if getattr(data, split) is not None] + (
        ["train"] if (from_train or (data.fold and "test" in wanted)) and "train" not in wanted else []
    )
    rows = {split: _load(recipe, task, split) for split in dict.fromkeys(read)}
    gold = [field for field in task.fields if field.gold and field.kind in ("label", "tags")]
    if any(field.kind == "tags" for field in gold) and rows:
        rows = prepare_tags(rows, on_bad_row=data.on_bad_row)
    everything = rows.get("train")  # labels are those of all folds
    if data.fold is not None and everything is not None:
        rows["train"], rows["test"] = split_by_fold(everything, data.fold)
    if from_train:
        assert data.validation_fraction is not None
        rows["train"], rows["validation"] = split_by_hash(rows["train"], data.validation_fraction)
    if facts is None:
        labels = data.labels or (labels_of(everything or rows["train"], gold[0].name) if gold else [])
        facts = task.learn(rows["train"], labels)
    for field in gold:
        rows = {
            split: check_labels(found, field.name, facts["labels"], split=split, on_bad_row=data.on_bad_row)
            for split, found in rows.items()
        }
    return Splits({split: found for split, found in rows.items() if split in wanted}, facts)


def _load(recipe: Recipe, task: type[Task], split: str) -> Rows:
    data = recipe.data
    return load_rows(
        getattr(data, split),
        key=f"data.{split}",
        split=split,
        fields=task.fields,
        columns=data.columns,
        on_bad_row=data.on_bad_row,
        document=data.document,
        max_rows=data.max_rows,
        folders=[Path.cwd()],
        cache_dir=cache_folder(),
    )


def provenance(splits: Splits) -> list[dict[str, Any]]:
    """Every data file with its rows and sha256, for the manifest."""

    def described(split: str, rows: Rows) -> Iterable[dict[str, Any]]:
        return (
            {"split": split, "path": file.path, "rows": file.rows, "sha256": file.sha256, "bytes": file.bytes}
            for file in rows.files
        )

    return [entry for split, rows in splits.rows.items() for entry in described(split, rows)]
