"""Read a file's raw rows, each with its line or row number: ``read_rows`` streams every format, however large the file.

Each format is a ``Format`` in a file of this folder, and ``FORMATS`` lists them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from lmkit.data.formats.base import (
    COMPRESSIONS,
    UNREADABLE,
    BadRow,
    Document,
    Format,
    Layout,
    numbered_lines,
    unreadable,
)
from lmkit.data.formats.conll import CONLL, CONLLU
from lmkit.data.formats.json_rows import JSON, JSON_LINES
from lmkit.data.formats.parquet import ARROW, PARQUET
from lmkit.data.formats.tables import CSV, TSV
from lmkit.data.formats.text import TEXT
from lmkit.data.row import Row, short_path
from lmkit.errors import DataError

__all__ = ["BadRow", "Document", "find_format", "may_be_text", "read_lines", "read_rows"]

FORMATS = (TEXT, JSON_LINES, ARROW, CONLL, JSON, CSV, TSV, PARQUET, CONLLU)
BY_ENDING = {ending: file_format for file_format in FORMATS for ending in file_format.endings}
KNOWN = f"known endings: {' '.join(BY_ENDING)}, each also with {' or '.join(COMPRESSIONS)}"


def find_format(path: Path) -> Format | None:
    """Return the format that a file's name promises, compression aside; None where it is none of ours.

    >>> find_format(Path("train.jsonl.gz")).name
    'jsonl'
    """
    stem, ending = os.path.splitext(path.name.lower())
    return BY_ENDING.get(os.path.splitext(stem)[1] if ending in COMPRESSIONS else ending)


def may_be_text(path: Path) -> bool:
    """Tell whether a file can be read line by line: its name promises text, or nothing."""
    file_format = find_format(path)
    return file_format is None or file_format.is_text


def read_rows(
    path: Path,
    *,
    document: Document = "line",
    header: bool = True,
    bad: Callable[[BadRow], None] | None = None,
) -> Iterator[tuple[int, Row]]:
    """Stream a file's rows, each with its number, counted from 1.

    The number is that of the row's first line; of the row itself in parquet and Arrow files. Memory does not
    grow with the file, but for ``.json``, which is parsed whole. CoNLL rows have ``tokens`` (the first column),
    ``tags`` (the last), every column under its position (``"0"``, ``"1"``, ...), and the line of each token
    under ``_lines``.

    Args:
        document, header: see ``Layout``.
        bad: called with each row that cannot be read, in its turn; None: it is raised.

    Raises:
        DataError: the file cannot be read, or not as what its name says.
    """
    file_format = find_format(path)
    if file_format is None:
        raise DataError("not a format that lmkit reads", place=short_path(path), remedy=KNOWN)
    try:
        for number, row in file_format.read(path, Layout(document, header)):
            if not isinstance(row, BadRow):
                yield number, row
            elif bad is None:
                raise row
            else:
                bad(row)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def read_lines(path: Path) -> Iterator[str]:
    """Read the lines of a text file, blank ones too.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    try:
        for _, line in numbered_lines(path):
            yield line
    except UNREADABLE as error:
        raise unreadable(path, error) from error
