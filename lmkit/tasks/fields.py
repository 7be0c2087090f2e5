"""The columns a task reads, declared so that data can be checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Field:
    """One column of a task's rows.

    Args:
        name: the role, and the name under which the row carries it.
        kind: ``text`` a non-empty string; ``label`` a string or an integer; ``labels`` a list of those without
            repetition, or a string in which ``separator`` parts them; ``number`` a finite number, as a string too;
            ``words`` a non-empty list of strings; ``tags`` a list of strings as long as ``words``; ``spans`` a list
            that a ``Form`` makes something of; ``offsets`` a (start, end) for each word, never read from a file;
            ``slice`` any single value, or none: no task reads it, ``eval.slices`` names it.
        aliases: other column names that are understood without a ``data.columns`` entry.
        gold: what is to be predicted: absent from the rows of ``lmkit predict``.
    """

    name: str
    kind: Literal["text", "label", "labels", "number", "words", "tags", "spans", "offsets", "slice"]
    aliases: tuple[str, ...] = ()
    gold: bool = False
    separator: str = ","


@dataclass(frozen=True)
class Form:
    """Another form in which files may have a task's rows, made into its own when they are read.

    Args:
        fields: the columns of this form, in place of the task's fields.
        convert: makes a row of the task's fields of one of these; its ValueError says what is wrong with the row.
        adds: what such rows carry besides the task's fields.
    """

    fields: tuple[Field, ...]
    convert: Callable[[Mapping[str, Any]], dict[str, Any]]
    adds: tuple[Field, ...] = ()
