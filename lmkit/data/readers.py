"""Read the files of a split row by row: count the rows, and keep those that are left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lmkit.data import formats, parallel
from lmkit.data.check.columns import (
    FirstRow,
    Keys,
    Roles,
    find_form,
    find_slice,
    has_header,
    missing_column,
)
from lmkit.data.check.errors import BadValue
from lmkit.data.check.values import check_row
from lmkit.data.formats import BadRow, Document
from lmkit.data.row import LEAVE_OUT, SLICE_COLUMN, OnBadRow, Row
from lmkit.errors import DataError
from lmkit.tasks.fields import Form


@dataclass(frozen=True)
class ReadOptions:
    """How rows are read.

    Args:
        on_bad_row: ``error`` raises at the first bad row, ``skip`` leaves it out and keeps it in ``Rows.rejected``.
        document: what is one row of a text file.
        max_rows: stop after so many usable rows.
    """

    on_bad_row: OnBadRow = "error"
    document: Document = "line"
    max_rows: int | None = None


@dataclass(frozen=True)
class Files:
    """The files of a split.

    Args:
        names: of each path, for messages.
        key: the recipe's key that names them.
        roles: where files go together line by line, the role of each; their paths follow role by role.
    """

    paths: list[Path]
    names: list[str]
    key: str
    roles: tuple[str, ...] = ()


class Reader:
    """Reads files one after another.

    Args:
        forms: what the rows may be made of; after the first row the form that it has.
    """

    def __init__(self, files: Files, forms: list[Form], roles: Roles, options: ReadOptions):
        self.files, self.forms, self.roles, self.options = files, forms, roles, options
        self.counts = [0] * len(files.paths)
        self.rejected: list[Row] = []

    def rows(self) -> Iterator[Row]:
        """Yield the usable rows, as they go into the Arrow file."""
        for index in range(len(self.files.paths)):
            yield from self._rows_of_file(index)
            self._refuse_empty(index)

    def _rows_of_file(self, index: int) -> Iterator[Row]:
        path = self.files.paths[index]
        is_skipping = self.options.on_bad_row == "skip"
        raw_rows = formats.read_rows(
            path,
            document=self.options.document,
            header=has_header(path, self.forms, self.roles),
            bad=partial(self._reject_unreadable, index) if is_skipping else None,
        )
        columns: dict[str, Keys] | None = None
        for line, raw in raw_rows:
            if columns is None:
                columns = self._find_columns(index, raw)
            ordinal = sum(self.counts)
            self.counts[index] += 1
            try:
                row = self._checked(raw, columns)
            except (BadValue, ValueError) as error:
                self._reject(index, line, ordinal, str(error), raw)
                continue
            place = {"_file": index, "_line": line, "_lines": raw.get("_lines")}
            yield {"id": ordinal, **place, **row}

    def _find_columns(self, index: int, raw: Row) -> dict[str, Keys]:
        """Map roles to columns by a file's first row, which also decides between the forms."""
        columns_read = {name: value for name, value in raw.items() if not name.startswith("_")}
        first = FirstRow(
            columns_read, self.files.paths[index], self.files.names[index], self.files.key
        )
        form, columns = find_form(first.row, self.forms, self.roles)
        self.forms = [form]
        for field in form.fields:
            if field.name not in columns:
                raise missing_column(first, field, form, self.roles, columns)
        for name in self.roles.slices:
            columns[SLICE_COLUMN + name] = find_slice(first, name)
        return columns

    def _checked(self, raw: Row, columns: dict[str, Keys]) -> Row:
        form = self.forms[0]
        row = form.convert(check_row(raw, form.fields, columns))
        return row | check_row(raw, self.roles.slice_fields, columns)

    def _reject_unreadable(self, index: int, error: BadRow) -> None:
        ordinal = sum(self.counts)
        self.counts[index] += 1
        self._reject(index, error.line, ordinal, error.problem, error.row)

    def _reject(self, index: int, line: int, ordinal: int, problem: str, row: Any) -> None:
        """Keep a row that is left out.

        Raises:
            DataError: bad rows are not left out.
        """
        if self.options.on_bad_row == "error":
            place = f"{self.files.names[index]}:{line}"
            raise DataError(problem, place=place, remedy=LEAVE_OUT) from None
        if isinstance(row, dict):
            row = {name: value for name, value in row.items() if not name.startswith("_")}
        row = json.loads(json.dumps(row, default=str))  # parquet holds dates and bytes, too
        rejected = {"file": index, "line": line, "problem": problem, "id": ordinal, "row": row}
        self.rejected.append(rejected)

    def _refuse_empty(self, index: int) -> None:
        if not self.counts[index]:
            raise DataError(
                "no rows in this file",
                place=self.files.names[index],
                remedy="leave it out of the list, or write it again",
            )


class ParallelReader(Reader):
    """Reads text files by role, the first ones together, then the second ones."""

    def rows(self) -> Iterator[Row]:
        """Yield the usable rows; a bad one has its place in the file whose line is bad."""
        nothing = FirstRow({}, self.files.paths[0], self.files.names[0], self.files.key)
        for name in self.roles.slices:
            find_slice(nothing, name)
        files_a_role = len(self.files.paths) // len(self.forms[0].fields)
        for turn in range(files_a_role):
            yield from self._rows_of_turn(turn, files_a_role)
            self._refuse_empty(turn)

    def _rows_of_turn(self, turn: int, files_a_role: int) -> Iterator[Row]:
        fields = self.forms[0].fields
        indices = {field.name: turn + i * files_a_role for i, field in enumerate(fields)}
        paths = {role: self.files.paths[index] for role, index in indices.items()}
        for line, raw in parallel.read_parallel(paths):
            ordinal = sum(self.counts[:files_a_role])
            for index in indices.values():
                self.counts[index] += 1
            row: Row = {}
            for field in fields:
                try:
                    row |= check_row(raw, [field], {field.name: (field.name,)})
                except BadValue as error:
                    self._reject(indices[field.name], line, ordinal, str(error), raw)
                    break
            else:
                yield {"id": ordinal, "_file": turn, "_line": line, "_lines": None, **row}
