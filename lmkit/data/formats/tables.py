"""Tables: ``.csv`` with quotes, ``.tsv`` without."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lmkit.data.formats.base import BadRow, Format, Layout, NumberedRows, numbered_lines
from lmkit.data.row import short_path
from lmkit.errors import DataError

Records = Iterator[tuple[int, list[str] | BadRow]]


def read_csv(path: Path, layout: Layout) -> NumberedRows:
    """Stream the rows of a comma-separated file."""
    return _rows(path, _csv_records(path), layout, "quote cells that contain a comma")


def read_tsv(path: Path, layout: Layout) -> NumberedRows:
    """Stream the rows of a tab-separated file, in which quotes mean nothing, as in all such corpora."""
    records = ((number, line.split("\t")) for number, line in numbered_lines(path))
    return _rows(path, records, layout, "a cell cannot contain a tab")


def _csv_records(path: Path) -> Records:
    csv.field_size_limit(2**31 - 1)  # the default refuses cells of more than 128 KiB
    reader = csv.reader((line + "\n" for _, line in numbered_lines(path)), strict=True)
    while True:
        start = reader.line_num + 1  # a quoted cell may go over several lines
        try:
            yield start, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                # It swallowed all rows from here on: never just one row to skip.
                raise DataError(
                    "a quoted cell that begins here never ends",
                    place=f"{short_path(path)}:{start}",
                    remedy='close the quote, or write a quote inside a cell as ""',
                ) from None
            remedy = 'write a quote inside a cell as "", and quote the cell'
            yield start, BadRow(f"not CSV: {error}", path=path, line=start, remedy=remedy, row=None)


def _rows(path: Path, records: Records, layout: Layout, remedy: str) -> NumberedRows:
    """Name the cells of each record by the header, or by their position.

    Args:
        remedy: what to do where a row has another number of cells than the first.
    """
    bad_row = partial(BadRow, path=path, remedy=remedy)
    names: list[str] | None = None
    for number, cells in records:
        if isinstance(cells, BadRow):
            yield number, cells
            continue
        if cells in ([], [""]):
            continue
        if names is None and layout.header:
            names = _header(cells, f"{short_path(path)}:{number}")
            continue
        positions = [str(i) for i in range(len(cells))]
        if names is None and cells == positions:  # pandas' header of columns without names
            names = positions
            continue
        names = names or positions
        if len(cells) == len(names):
            yield number, dict(zip(names, cells, strict=True))
            continue
        count = f"{len(cells)} cell{'s' * (len(cells) != 1)}"
        problem = f"{count} where the first line has {len(names)}"
        yield number, bad_row(problem, line=number, row=cells)


def _header(cells: list[str], place: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        problem = f"two columns are called {twice[0]!r}"
        raise DataError(problem, place=place, remedy="give each column its own name")
    return names


CSV = Format("csv", (".csv",), read_csv, is_table=True)
TSV = Format("tsv", (".tsv",), read_tsv, is_table=True)
