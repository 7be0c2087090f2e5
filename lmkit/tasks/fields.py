"""The columns a task reads, declared so that data can be checked before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Field:
    """One column of a task's rows.

    Args:
        name: the role, and the name under which the row carries it.
        kind: ``text`` a non-empty string; ``label`` a string or an integer; ``words`` a
            non-empty list of strings; ``tags`` a list of strings as long as ``words``; ``slice`` any single value, or
            none: no task reads it, ``eval.slices`` names it.
        aliases: other column names that are understood without a ``data.columns`` entry.
        gold: what is to be predicted: absent from the rows of ``lmkit predict``.
    """

    name: str
    kind: Literal["text", "label", "words", "tags", "slice"]
    aliases: tuple[str, ...] = ()
    gold: bool = False
