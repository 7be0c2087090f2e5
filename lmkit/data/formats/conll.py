"""CoNLL: a word a line with its tags in columns, an empty line after each sentence.

The format of CoNLL-2000 and 2003 (``.conll``, ``.bio``, ``.iob``), and CoNLL-U (universaldependencies.org/format.html).
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

from lmkit.data.formats.base import BadRow, Format, Layout, NumberedRows, numbered_lines
from lmkit.data.row import Row

REMEDY = (
    "each line has a word and its tag with a tab or a space between, an empty line ends a sentence"
)
CONTRACTION_OR_EMPTY_NODE = re.compile(r"\d+[-.]\d+")  # 1-2, 1.1: no words of CoNLL-U


@dataclass(frozen=True)
class Table:
    """The columns of a file.

    Args:
        width: how many there are. has_tabs: they are parted by tabs.
        token, tag: where the word and its tag are.
        is_universal: CoNLL-U.
    """

    width: int
    has_tabs: bool
    token: int = 0
    tag: int = -1
    is_universal: bool = False

    def is_comment(self, line: str, cells: list[str]) -> bool:
        """Tell a comment from a token: '#' and '#tag' are words, too, where the line has a token's columns."""
        if not line.startswith("#"):
            return False
        lacks_tabs = self.has_tabs and "\t" not in line
        return self.is_universal or len(cells) != self.width or lacks_tabs

    def is_no_word(self, cells: list[str]) -> bool:
        return self.is_universal and bool(CONTRACTION_OR_EMPTY_NODE.fullmatch(cells[0]))


@dataclass
class Sentence:
    """The lines of a sentence, as far as they are read."""

    numbers: list[int] = field(default_factory=list)
    cells: list[list[str]] = field(default_factory=list)
    fault: BadRow | None = None

    def add(self, number: int, cells: list[str], fault: BadRow | None) -> None:
        self.numbers.append(number)
        self.cells.append(cells)
        self.fault = self.fault or fault

    def row(self, table: Table) -> Row | BadRow:
        if self.fault:
            return self.fault
        columns = [list(column) for column in zip(*self.cells, strict=True)]
        tokens = columns[table.token]
        row: Row = {"tokens": tokens, "tags": columns[table.tag], "text": " ".join(tokens)}
        row |= {str(i): column for i, column in enumerate(columns)}
        return row | {"_lines": self.numbers}


def read_conll(path: Path, layout: Layout) -> NumberedRows:
    """Stream the sentences of a file; its first token tells how many columns there are."""
    first = ""
    for _, line in numbered_lines(path):
        if line.strip() and not line.startswith(("#", "-DOCSTART-")):
            first = line
            break
    return _sentences(path, Table(len(_split_cells(first)), "\t" in first))


def read_conllu(path: Path, layout: Layout) -> NumberedRows:
    """Stream the sentences of a CoNLL-U file; the tag is the universal part of speech."""
    return _sentences(path, Table(width=10, has_tabs=True, token=1, tag=3, is_universal=True))


def _sentences(path: Path, table: Table) -> NumberedRows:
    sentence = Sentence()
    end = [(0, "")]  # a last blank line ends the last sentence
    for number, line in itertools.chain(numbered_lines(path), end):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if sentence.numbers:
                yield sentence.numbers[0], sentence.row(table)
            sentence = Sentence()
            continue
        cells = _split_cells(line)
        if not table.is_comment(line, cells) and not table.is_no_word(cells):
            sentence.add(number, cells, _fault(line, cells, table, path=path, number=number))


def _split_cells(line: str) -> list[str]:
    line = line.rstrip(" \t")  # not Unicode's blanks, which may be part of a word
    return line.split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]


def _fault(line: str, cells: list[str], table: Table, *, path: Path, number: int) -> BadRow | None:
    if len(cells) == table.width and table.width >= 2:
        return None
    problem = f"{len(cells)} columns" if len(cells) != 1 else f"a single column, {cells[0]!r},"
    expected = f"{table.width} are" if table.width >= 2 else "a word and its tag are"
    problem = f"{problem} where {expected} expected"
    return BadRow(problem, path=path, line=number, remedy=REMEDY, row=line)


CONLL = Format("conll", (".conll", ".bio", ".iob"), read_conll)
CONLLU = Format("conllu", (".conllu",), read_conllu)
