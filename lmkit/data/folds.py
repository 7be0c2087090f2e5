"""Split rows in two by the hash of their content: validation rows, and the folds of a cross-validation.

So a row stays on its side when others come, go or move, and equal rows are on the same side.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from lmkit.data.row import hash_of
from lmkit.data.rows import Rows
from lmkit.errors import DataError, RecipeError


def split_by_hash(rows: Rows, fraction: float) -> tuple[Rows, Rows]:
    """Return training and validation rows; ``rejected`` stays with the training rows.

    Raises:
        DataError: one of the sides is empty.
    """

    def is_chosen(digest: str) -> bool:
        return int(digest[:16], 16) < fraction * 2**64

    remedy = "choose a fraction nearer to one half, add rows, or name a file in data.validation"
    return _split(rows, is_chosen, "validation", place="data.validation_fraction", remedy=remedy)


def split_by_fold(rows: Rows, fold: str) -> tuple[Rows, Rows]:
    """Return training and test rows of one fold, ``"2/5"``.

    Every row is in one fold. The digits of the hash are others than ``split_by_hash`` looks at, so what is left can
    still be split evenly.

    Raises:
        RecipeError: there is no such fold. DataError: it is empty, or all that there is.
    """
    number, folds = map(int, fold.split("/"))
    if number > folds or folds < 2:
        remedy = f"1/{max(2, folds)} is the first"
        raise RecipeError(f"there is no fold {fold}", place="data.fold", remedy=remedy)

    def is_chosen(digest: str) -> bool:
        return int(digest[16:32], 16) * folds >> 64 == number - 1

    remedy = "choose fewer folds, or add rows"
    return _split(rows, is_chosen, f"fold {fold}", place="data.fold", remedy=remedy)


def _split(
    rows: Rows, is_chosen: Callable[[str], bool], name: str, *, place: str, remedy: str
) -> tuple[Rows, Rows]:
    """Return the rows whose hash is not chosen, and those whose hash is."""
    names = sorted(set(rows.names) - {"id"})
    contents = itertools.chain.from_iterable(rows.batches(names=names))
    chosen = np.fromiter((is_chosen(hash_of(row)) for row in contents), bool, len(rows))
    if chosen.all() or not chosen.any():
        empty = "training" if chosen.any() else name
        count = f"{len(rows)} row{'s' * (len(rows) != 1)}"
        raise DataError(f"no row of {count} falls to {empty}", place=place, remedy=remedy)
    others = rows.select(np.flatnonzero(~chosen))
    return others, rows.select(np.flatnonzero(chosen), rejected=[])
