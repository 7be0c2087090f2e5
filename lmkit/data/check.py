"""Reading the rows of a split once and checking them field by field; what is wrong with a row is said with its file and line."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit.data import formats, parallel, sources
from lmkit.data.formats import BadRow, Document
from lmkit.data.row import (
    FORMAT,
    LEAVE_OUT,
    SLICE_COLUMN,
    DataFile,
    OnBadRow,
    Row,
    hash_of,
    short_path,
)
from lmkit.data.sources import HubId
from lmkit.errors import DataError, RecipeError, nearest, suggest
from lmkit.tasks.fields import Field, Form

if TYPE_CHECKING:
    from lmkit.data.rows import Rows

PEEKED_ROWS = 200
Keys = tuple[str, ...]  # of a column: its name, and where that holds objects the keys within
TYPES = {
    type(None): "null",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def load_rows(
    source: str | list[str] | Mapping[str, str | list[str]],
    *,
    key: str,
    split: str,
    fields: Sequence[Field],
    forms: Sequence[Form] = (),
    columns: Mapping[str, str],
    on_bad_row: OnBadRow,
    document: Document,
    max_rows: int | None,
    folders: list[Path],
    cache_dir: Path,
    with_gold: bool = True,
    slices: Sequence[str] = (),
) -> Rows:
    """Find, read and check the rows of one split; what was read before, and has not changed, is not read again.

    Args:
        source, key, folders: see ``sources.find_files``, and ``parallel.find_parallel`` for files by role;
            ``split`` is the split of a hub data set.
        fields: what the task reads. columns: role -> column of the file; columns without an entry go by the role's
            name, then by its aliases. Positions ("0", "1") say that csv and tsv files have no header; a dot leads
            into an object (``translation.en``), unless there is a column of that very name.
        forms: what else the rows may be made of; the first row, and the roles in ``columns``, decide for the split.
        on_bad_row: ``error`` raises at the first bad row, ``skip`` leaves it out and keeps it in ``Rows.rejected``.
        max_rows: stop after so many usable rows.
        cache_dir: where the Arrow file goes.
        with_gold: False: without the fields that are to be predicted.
        slices: more columns to keep, each under ``SLICE_COLUMN`` and its name; they are no part of the fingerprint.

    Raises:
        DataError: no such file, no such column, a bad row, or no usable row at all.
        RecipeError: no such column as ``slices`` names.
    """
    suited = _suited([Form(tuple(fields), dict), *forms], columns)
    if not with_gold:
        suited = [
            replace(form, fields=tuple(field for field in form.fields if not field.gold))
            for form in suited
        ]
    wanted = [field for field in fields if with_gold or not field.gold]
    found = find_rows(source, key=key, fields=fields, folders=folders, with_gold=with_gold)
    by_role = found if isinstance(found, dict) else {}
    if isinstance(found, dict):
        found = [path for files in found.values() for path in files]
    from filelock import FileLock  # files that are not there are said at once

    from lmkit.data.rows import Rows, is_whole, schema_of, write_rows

    paths = sources.download(found, split=split, key=key) if isinstance(found, HubId) else found
    shown = [
        f"{found}/{path.name}" if isinstance(found, HubId) else short_path(path) for path in paths
    ]
    try:
        hashes = [sources.sha256_of(path) for path in paths]
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{error.strerror}: {error.filename}",
            place=key,
            remedy="check that it can be read, and the cache written",
        ) from None
    kinds = ["".join(path.suffixes[-2:]).lower() for path in paths]
    roles = [
        [f.name, f.kind, columns.get(f.name), list(f.aliases), f.separator]
        for form in suited
        for f in form.fields
    ]
    fingerprint = hash_of(
        [FORMAT, hashes, kinds, roles, on_bad_row, document, max_rows, list(by_role)]
    )
    sliced = [Field(SLICE_COLUMN + name, "slice") for name in slices]
    cached = (
        cache_dir
        / f"rows-{(hash_of([fingerprint, list(slices)]) if slices else fingerprint)[:32]}.arrow"
    )
    summary_path = cached.with_suffix(".json")
    with FileLock(f"{cached}.lock"):
        if not (is_whole(cached) and summary_path.is_file()):
            kind = _ParallelReader if by_role else _Reader
            reader = kind(paths, shown, suited, columns, on_bad_row, document, key, sliced)
            rows_read = itertools.islice(reader.rows(), max_rows)
            first_row = list(itertools.islice(rows_read, 1))  # it decides the form
            schema = schema_of([*wanted, *reader.forms[0].adds, *sliced])
            write_rows(cached, schema, itertools.chain(first_row, rows_read))
            _write_text(
                summary_path, json.dumps({"counts": reader.counts, "rejected": reader.rejected})
            )
        summary = json.loads(summary_path.read_text())
    files = [
        DataFile(name, count, sha256, path.stat().st_size)
        for name, count, sha256, path in zip(shown, summary["counts"], hashes, paths, strict=True)
    ]
    # The same content may lie elsewhere now: places are put together here, not in the cache.
    rejected = [
        {"place": f"{shown[r.pop('file')]}:{r.pop('line')}", **r} for r in summary["rejected"]
    ]
    rows = Rows(cached, files=files, rejected=rejected, fingerprint=fingerprint)
    if not len(rows):
        first = rejected[0]
        raise DataError(
            f"all {len(rejected)} rows are bad; the first: {first['problem']}",
            place=first["place"],
            remedy="correct the data, or data.columns",
        )
    return rows


def find_rows(
    source: str | list[str] | Mapping[str, str | list[str]],
    *,
    key: str,
    fields: Sequence[Field],
    folders: list[Path],
    with_gold: bool = True,
) -> list[Path] | HubId | parallel.ByRole:
    """The files of one split, for arguments as of ``load_rows``.

    Raises:
        DataError: there is no such file, or none that can be read.
    """
    wanted = [field for field in fields if with_gold or not field.gold]
    if isinstance(source, Mapping):
        return parallel.find_parallel(
            source, key=key, fields=fields, wanted=wanted, folders=folders
        )
    return _find(source, key, wanted, folders)


Peek = Callable[
    [Field], list[Any] | None
]  # a field -> the first values of its column, None where there is no such column


def peek(
    source: str | list[str] | Mapping[str, Any],
    *,
    key: str,
    split: str,
    columns: Mapping[str, str],
    document: Document,
    folders: list[Path],
) -> Peek:
    """The first rows of a source, unchecked: what tells which fields the data has, before they are read.

    Args: as of ``load_rows``. Nothing is read before the first question.
    """

    if isinstance(source, Mapping):  # text files by role
        return lambda field: [] if field.name in source else None

    @functools.cache
    def first_rows() -> list[Row]:
        found = sources.find_files(source, key=key, folders=folders)
        path = (
            sources.download(found, split=split, key=key) if isinstance(found, HubId) else found
        )[0]
        header = not any(name.isdecimal() for name in columns.values())
        raw = formats.read_rows(path, document=document, header=header, bad=lambda error: None)
        return [row for _, row in itertools.islice(raw, PEEKED_ROWS)]

    def values(field: Field) -> list[Any] | None:
        rows = first_rows()
        names = [columns[field.name]] if field.name in columns else [field.name, *field.aliases]
        keys = next((keys for name in names if rows and (keys := _keys(rows[0], name))), None)
        return (
            None
            if keys is None
            else [value for row in rows if (value := _at(row, keys)) is not None]
        )

    return values


def _at(row: Any, keys: Keys) -> Any:
    for key in keys:
        row = row.get(key) if isinstance(row, dict) else None
    return row


def _suited(forms: list[Form], columns: Mapping[str, str]) -> list[Form]:
    """The forms that have every role of ``data.columns``."""
    suited = [form for form in forms if columns.keys() <= {field.name for field in form.fields}]
    names = list(dict.fromkeys(field.name for form in forms for field in form.fields))
    if unknown := [role for role in columns if role not in names]:
        raise DataError(
            f"this task has no column {unknown[0]!r}",
            place="data.columns",
            remedy=suggest(unknown[0], names),
        )
    if not suited:
        choices = " or ".join(", ".join(field.name for field in form.fields) for form in forms)
        raise DataError(
            f"{' and '.join(columns)} do not go together",
            place="data.columns",
            remedy=f"name {choices}",
        )
    return suited


def _find(
    source: str | list[str], key: str, wanted: Sequence[Field], folders: list[Path]
) -> list[Path] | HubId:
    """``sources.find_files``; of one of two parallel files, what to write instead."""
    try:
        return sources.find_files(source, key=key, folders=folders)
    except DataError as error:
        places = [folder / source for folder in folders] if isinstance(source, str) else []
        path = next((path for path in places if path.is_file()), None)
        if path is None or not (remedy := parallel.hint(path, key=key, wanted=wanted)):
            raise
        raise DataError(error.problem, place=error.place, remedy=remedy) from None


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


class _Reader:
    """Reads files one after another; counts their rows and keeps the rejected ones meanwhile."""

    def __init__(
        self,
        paths: list[Path],
        shown: list[str],
        forms: list[Form],
        columns: Mapping[str, str],
        on_bad_row: OnBadRow,
        document: Document,
        key: str,
        slices: list[Field],
    ):
        self.key, self.slices = key, slices
        self.paths, self.shown, self.columns = paths, shown, columns
        self.forms = forms  # after the first row, the one that it has
        self.on_bad_row, self.document = on_bad_row, document
        self.counts = [0] * len(paths)
        self.rejected: list[Row] = []

    def rows(self) -> Iterator[Row]:
        """The usable rows, as they go into the Arrow file."""
        for index, path in enumerate(self.paths):
            mapping: dict[str, Keys] | None = None
            bad = self._rejecter(index) if self.on_bad_row == "skip" else None
            for line, raw in formats.read_rows(
                path, document=self.document, header=self._has_header(path), bad=bad
            ):
                if mapping is None:
                    mapping = self._map(raw, path, self.shown[index])
                ordinal = sum(self.counts)
                self.counts[index] += 1
                try:
                    row = self.forms[0].convert(_checked(raw, self.forms[0].fields, mapping))
                    row |= _checked(raw, self.slices, mapping)
                except (_BadValue, ValueError) as error:
                    if bad is None:
                        raise DataError(
                            str(error), place=f"{self.shown[index]}:{line}", remedy=LEAVE_OUT
                        ) from None
                    self._reject(index, line, ordinal, str(error), raw)
                    continue
                yield {
                    "id": ordinal,
                    "_file": index,
                    "_line": line,
                    "_lines": raw.get("_lines"),
                    **row,
                }
            if not self.counts[index]:
                raise DataError(
                    "no rows in this file",
                    place=self.shown[index],
                    remedy="leave it out of the list, or write it again",
                )

    def _rejecter(self, index: int) -> Callable[[BadRow], None]:
        def reject(error: BadRow) -> None:
            self.counts[index] += 1
            self._reject(index, error.line, sum(self.counts) - 1, error.problem, error.row)

        return reject

    def _reject(self, index: int, line: int, ordinal: int, problem: str, row: Any) -> None:
        if isinstance(row, dict):
            row = {name: value for name, value in row.items() if not name.startswith("_")}
        row = json.loads(json.dumps(row, default=str))  # parquet holds dates and bytes, too
        self.rejected.append(
            {"file": index, "line": line, "problem": problem, "id": ordinal, "row": row}
        )

    def _has_header(self, path: Path) -> bool:
        roles = {field.name for form in self.forms for field in form.fields}
        used = [column for role, column in self.columns.items() if role in roles]
        positions = [name for name in used if name.isdecimal()]
        file_format = formats.find_format(path)
        is_table = file_format is not None and file_format.is_table
        if positions and len(positions) < len(used) and is_table:
            remedy = "give the names of the header, or positions for all where there is none"
            raise DataError(
                "some columns are named, others given by position",
                place="data.columns",
                remedy=remedy,
            )
        return not positions

    def _map(self, first: Row, path: Path, place: str) -> dict[str, Keys]:
        """Role -> column, from a file's first row; it also decides between the forms."""
        first = {name: value for name, value in first.items() if not name.startswith("_")}
        # the form that is there, or else the one of which most is there
        form = max(
            self.forms,
            key=lambda form: (
                len(found := self._find(first, form)) == len(form.fields),
                len(found),
            ),
        )
        mapping = self._find(first, form)
        self.forms = [form]
        for field in form.fields:
            choices = self._choices(field)
            if field.name not in mapping:
                there = [name for column, value in first.items() for name in _names(column, value)]
                given = (
                    f" ({choices[0]!r}, says data.columns)" if field.name in self.columns else ""
                )
                unused = [name for name in there if name not in map(".".join, mapping.values())]
                close = nearest(choices[0], unused) or (unused[0] if len(unused) == 1 else "COLUMN")
                remedy = f"say which it is: data.columns={{{field.name}: {close}}}"
                sign = re.search(r"[;\t|]|,(?=\w)", there[0])
                file_format = formats.find_format(path)
                assert file_format is not None
                if file_format.is_text:
                    remedy = f"a text file has texts alone; {field.name} needs .jsonl, .csv, .tsv, .conll or .parquet"
                    remedy = parallel.hint(path, key=self.key, wanted=form.fields) or remedy
                elif file_format.is_table and len(there) == 1 and sign:
                    remedy = f"the cells seem to be parted by {sign[0]!r}: .csv is read with commas, .tsv with tabs"
                elif file_format.is_table:
                    remedy += "; in a file without a header, by position: 0, 1, ..."
                raise DataError(
                    f"no column for {field.name!r}{given}; there are: {', '.join(name[:40] for name in there)}",
                    place=place,
                    remedy=remedy,
                )
        slices = {
            field.name: _slice_keys(first, field.name.removeprefix(SLICE_COLUMN), place)
            for field in self.slices
        }
        return mapping | slices

    def _choices(self, field: Field) -> list[str]:
        return (
            [self.columns[field.name]]
            if field.name in self.columns
            else [field.name, *field.aliases]
        )

    def _find(self, first: Row, form: Form) -> dict[str, Keys]:
        found = {
            field.name: next(
                filter(None, (_keys(first, name) for name in self._choices(field))), None
            )
            for field in form.fields
        }
        return {name: keys for name, keys in found.items() if keys}


class _ParallelReader(_Reader):
    """Reads text files by role, the first ones together, then the second ones; ``paths`` are those of each role in turn."""

    def rows(self) -> Iterator[Row]:
        """The usable rows; a bad one has its place in the file whose line is bad."""
        fields = self.forms[0].fields
        for field in self.slices:
            _slice_keys({}, field.name.removeprefix(SLICE_COLUMN), self.shown[0])
        number = len(self.paths) // len(fields)
        ordinal = -1
        for turn in range(number):
            files = {field.name: turn + i * number for i, field in enumerate(fields)}
            for line, raw in parallel.read_parallel(
                {role: self.paths[index] for role, index in files.items()}
            ):
                ordinal += 1
                for index in files.values():
                    self.counts[index] += 1
                row: Row = {}
                for field in fields:
                    try:
                        row |= _checked(raw, [field], {field.name: (field.name,)})
                    except _BadValue as error:
                        if self.on_bad_row == "error":
                            place = f"{self.shown[files[field.name]]}:{line}"
                            raise DataError(str(error), place=place, remedy=LEAVE_OUT) from None
                        self._reject(files[field.name], line, ordinal, str(error), raw)
                        break
                else:
                    yield {"id": ordinal, "_file": turn, "_line": line, "_lines": None, **row}
            if not self.counts[turn]:
                raise DataError(
                    "no rows in this file",
                    place=self.shown[turn],
                    remedy="leave it out of the list, or write it again",
                )


def _slice_keys(first: Row, name: str, place: str) -> Keys:
    """Where a column of ``eval.slices`` is, from a file's first row."""
    keys = _keys(first, name)
    if keys is None:
        there = [known for column, value in first.items() for known in _names(column, value)]
        raise RecipeError(
            f"no column {name!r} in {place}", place="eval.slices", remedy=suggest(name, there)
        )
    value = first
    for key in keys:
        value = value[key] if isinstance(value, dict) else None
    if isinstance(value, (list, dict)):
        raise RecipeError(
            f"{name!r} is {_type(value)} in {place}",
            place="eval.slices",
            remedy="name a column with one value for each row",
        )
    return keys


class _BadValue(Exception):
    """What is wrong with a row; who knows its place makes a DataError of it."""


def _keys(row: Row, name: str) -> Keys | None:
    """The keys that lead to what a name means, from a file's first row; None where nothing does.

    >>> _keys({"translation": {"en": "sea", "de": "Meer"}, "a.b": 1}, "translation.en")
    ('translation', 'en')
    >>> _keys({"a.b": 1, "a": {"b": 2}}, "a.b")
    ('a.b',)
    """
    if name in row:
        return (name,)
    for dot in re.finditer(r"\.", name):
        head, rest = name[: dot.start()], name[dot.end() :]
        if (
            head in row and row[head] is None
        ):  # this row is bad, and will be called so; the next may not be
            return (head, *rest.split("."))
        if isinstance(row.get(head), dict) and (keys := _keys(row[head], rest)):
            return (head, *keys)
    return None


def _names(column: str, value: Any) -> list[str]:
    """What data.columns may call a column, or the parts of one that holds an object."""
    return [f"{column}.{key}" for key in value] if isinstance(value, dict) and value else [column]


def _value(raw: Row, keys: Keys) -> Any:
    """What the keys of a column lead to in one raw row."""
    if keys[0] not in raw:
        raise _BadValue(f"no {keys[0]!r} here, unlike in the first row")
    value = raw[keys[0]]
    for depth, key in enumerate(keys[1:], 1):
        column = ".".join(keys[:depth])
        if not isinstance(value, dict):
            raise _BadValue(f"{column!r} is {_type(value)}; an object with {key!r} is expected")
        if key not in value:
            raise _BadValue(f"no {key!r} in {column!r}")
        value = value[key]
    return value


def _checked(raw: Row, fields: Sequence[Field], mapping: dict[str, Keys]) -> Row:
    """The task's fields of one raw row; _BadValue says what is wrong with it."""
    row: Row = {}
    words: list[str] | None = None
    for field in fields:
        if field.kind == "slice":
            row[field.name] = _slice_value(raw, mapping[field.name])
            continue
        column, value = ".".join(mapping[field.name]), _value(raw, mapping[field.name])
        if field.kind == "text":
            row[field.name] = _text(value, column)
        elif field.kind == "label":
            row[field.name] = _label(value, column)
        elif field.kind == "labels":
            row[field.name] = _labels(value, column, field.separator)
        elif field.kind == "number":
            row[field.name] = _number(value, column)
        elif not isinstance(value, list):
            hint = (
                "; one label for a whole text is task: classification"
                if field.kind == "spans" and value is not None
                else ""
            )
            raise _BadValue(
                f"{column!r} is {_type(value)}; a list of {field.kind} is expected{hint}"
            )
        elif field.kind == "words":
            row[field.name] = words = [
                _text(word, f"{column}[{i}]") for i, word in enumerate(value)
            ]
            if not words:
                raise _BadValue(f"{column!r} is an empty list")
        elif field.kind == "spans":
            row[field.name] = value
        else:
            row[field.name] = [_label(tag, f"{column}[{i}]") for i, tag in enumerate(value)]
            if words is not None and len(words) != len(value):
                raise _BadValue(f"{len(words)} words but {len(value)} tags")
    return row


def _slice_value(raw: Row, keys: Keys) -> str | None:
    """A value to slice by, as text: none makes a row bad."""
    try:
        value = _value(raw, keys)
    except _BadValue:
        return None
    if isinstance(value, (bool, float)):
        value = str(value).lower().removesuffix(".0")
    return None if value is None else str(value).encode("utf-8", "replace").decode()


def _type(value: Any) -> str:
    return TYPES.get(type(value), f"a {type(value).__name__}")


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise _BadValue(f"{column!r} is {_type(value)}; text is expected")
    if not value.strip():
        raise _BadValue(f"{column!r} is empty" if not value else f"{column!r} is blank")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise _BadValue(f"{column!r} contains half a surrogate pair, which is not a character")
    return value


def _labels(value: Any, column: str, separator: str) -> list[str]:
    if isinstance(value, str):
        value = [part for part in value.split(separator) if part.strip()]
    if not isinstance(value, list):
        raise _BadValue(f"{column!r} is {_type(value)}; a list of labels is expected")
    labels = [_label(label, f"{column}[{i}]") for i, label in enumerate(value)]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise _BadValue(
            f"{column!r} holds {twice!r} twice; the labels that apply are expected, not a vector of zeros and ones"
        )
    return labels


def _number(value: Any, column: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        what = f"{value!r}" if isinstance(value, (str, float)) else _type(value)
        raise _BadValue(f"{column!r} is {what}; a number is expected")
    return number


def _label(value: Any, column: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()  # as JSON spells it
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str):
        return _text(value, column).strip()
    number = f" {value}" if isinstance(value, float) else ""
    raise _BadValue(f"{column!r} is {_type(value)}{number}; a label is a string or a whole number")
