"""Mistakes of the user: one message each, with its place and its remedy.

    LmkitError              anything below; the command line prints it and exits with status 2
    ├── RecipeError         a key or a value of the recipe, or of a KEY=VALUE argument
    ├── DataError           a data file, a column, a row
    ├── ModelError          a model directory, a tokenizer, a checkpoint
    └── RunError            a run directory: already there, not a run, nothing to resume
    TrainingStopped         training cannot go on (a loss that is not finite): exit status 1
    ProofFailed             lmkit doctor found that a promise does not hold: exit status 1

Mistakes of the programmer are assertions and ordinary exceptions; they keep their traceback.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LmkitError(Exception):
    """A mistake of the user: its place, and what to do about it.

    Args:
        problem: what is wrong, one sentence without a full stop.
        place: where it is: ``train.conll:17``, ``train.learning_rate``; shown first.
        remedy: what to do, one sentence without a full stop; shown on its own line.
    """

    def __init__(self, problem: str, *, place: str | None = None, remedy: str | None = None):
        self.problem, self.place, self.remedy = problem, place, remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        first = f"{self.place}: {self.problem}" if self.place else self.problem
        return f"{first}\n  {self.remedy}" if self.remedy else first


class RecipeError(LmkitError):
    """A key or a value of the recipe."""


class DataError(LmkitError):
    """A data file, a column or a row."""


class ModelError(LmkitError):
    """A model directory, a tokenizer or a checkpoint."""


class RunError(LmkitError):
    """A run directory."""


class TrainingStopped(Exception):
    """Training cannot go on; the last good checkpoint stays where it is."""


class ProofFailed(Exception):
    """A promise does not hold on the user's recipe."""


def is_full(error: BaseException) -> bool:
    """Tell if a disk had no room; safetensors hands on the text of that error alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    number = re.search(r"\(os error (\d+)\)", str(error))
    return number is not None and int(number[1]) in FULL


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its name where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name most like ``name``, or None when nothing is close."""
    names = list(names)
    # ``seesd`` is nearer to seeds than to seed
    for candidate in names:
        if sorted(candidate) == sorted(name):
            return candidate
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return close[0] if close else None


def suggest(name: str, names: Iterable[str], *, most: int = 12) -> str:
    """Suggest a remedy for an unknown name: the nearest one, and all of them where they are few.

    >>> suggest("llma", ["llama", "bert"])
    "did you mean 'llama'? known: bert, llama"
    """
    names = sorted(names)
    shown = ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
    close = nearest(name, names)
    return (f"did you mean {close!r}? " if close else "") + f"known: {shown}"
