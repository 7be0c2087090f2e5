"""Read the rows of a split once, checked field by field, and keep them in the cache."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit.data import formats, parallel, sources
from lmkit.data.check.columns import Roles, find_field, value_at
from lmkit.data.check.errors import BadValue
from lmkit.data.formats import Document
from lmkit.data.hub import HubId, download
from lmkit.data.readers import Files, ParallelReader, Reader, ReadOptions
from lmkit.data.row import FORMAT, DataFile, Row, hash_of, short_path
from lmkit.data.sources import Source
from lmkit.errors import DataError
from lmkit.tasks.fields import Field, Form

if TYPE_CHECKING:
    from lmkit.data.rows import Rows

PEEKED_ROWS = 200


def load_rows(source: Source, roles: Roles, options: ReadOptions, cache_dir: Path) -> Rows:
    """Find, read and check the rows of one split; what was read before, and has not changed, is not read again.

    Args:
        cache_dir: where the Arrow file goes.

    Raises:
        DataError: no such file, no such column, a bad row, or no usable row at all.
        RecipeError: no such column as ``roles.slices`` names.
    """
    forms = roles.suited_forms()
    files = _locate(source, roles)
    from filelock import FileLock  # files that are not there are said at once

    from lmkit.data.rows import Rows, is_whole

    hashes = _hash_files(files, cache_dir)
    fingerprint = _fingerprint(files, hashes, forms, roles, options)
    slices = list(roles.slices)  # they decide what is kept, but are no part of the rows
    stem = hash_of([fingerprint, slices]) if slices else fingerprint
    cached = cache_dir / f"rows-{stem[:32]}.arrow"
    summary_path = cached.with_suffix(".json")
    with FileLock(f"{cached}.lock"):
        if not (is_whole(cached) and summary_path.is_file()):
            _read_into(cached, summary_path, files, forms, roles, options)
        summary = json.loads(summary_path.read_text())
    data_files = [
        DataFile(name, count, sha256, path.stat().st_size)
        for name, count, sha256, path in zip(
            files.names, summary["counts"], hashes, files.paths, strict=True
        )
    ]
    # The same content may lie elsewhere now: places are put together here, not in the cache.
    rejected = []
    for entry in summary["rejected"]:
        place = f"{files.names[entry.pop('file')]}:{entry.pop('line')}"
        rejected.append({"place": place, **entry})
    rows = Rows(cached, files=data_files, rejected=rejected, fingerprint=fingerprint)
    if not len(rows):
        raise _no_usable_row(rejected)
    return rows


def _no_usable_row(rejected: list[Row]) -> DataError:
    return DataError(
        f"all {len(rejected)} rows are bad; the first: {rejected[0]['problem']}",
        place=rejected[0]["place"],
        remedy="correct the data, or data.columns",
    )


def _locate(source: Source, roles: Roles) -> Files:
    located = find_rows(source, roles)
    if isinstance(located, HubId):
        return _download(located, source)
    if isinstance(located, dict):
        return _by_role(located, source)
    return Files(located, [short_path(path) for path in located], source.key)


def _download(hub_id: HubId, source: Source) -> Files:
    paths = download(hub_id, split=source.split, key=source.key)
    return Files(paths, [f"{hub_id}/{path.name}" for path in paths], source.key)


def _by_role(located: parallel.ByRole, source: Source) -> Files:
    paths = list(itertools.chain.from_iterable(located.values()))
    return Files(paths, [short_path(path) for path in paths], source.key, tuple(located))


def _hash_files(files: Files, cache_dir: Path) -> list[str]:
    try:
        hashes = [sources.sha256_of(path) for path in files.paths]
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_access(error, files.key) from None
    return hashes


def _no_access(error: OSError, key: str) -> DataError:
    return DataError(
        f"{error.strerror}: {error.filename}",
        place=key,
        remedy="check that it can be read, and the cache written",
    )


def _fingerprint(
    files: Files, hashes: list[str], forms: list[Form], roles: Roles, options: ReadOptions
) -> str:
    """Hash all that decides the rows."""
    endings = ["".join(path.suffixes[-2:]).lower() for path in files.paths]
    fields = [
        [field.name, field.kind, roles.column_of(field), list(field.aliases), field.separator]
        for form in forms
        for field in form.fields
    ]
    reading = [options.on_bad_row, options.document, options.max_rows]
    return hash_of([FORMAT, hashes, endings, fields, *reading, list(files.roles)])


def _read_into(
    path: Path,
    summary_path: Path,
    files: Files,
    forms: list[Form],
    roles: Roles,
    options: ReadOptions,
) -> None:
    from lmkit.data.rows import schema_of, write_rows

    reader = (ParallelReader if files.roles else Reader)(files, forms, roles, options)
    rows = itertools.islice(reader.rows(), options.max_rows)
    first_row = list(itertools.islice(rows, 1))  # it decides the form
    schema = schema_of([*roles.fields_read, *reader.forms[0].adds, *roles.slice_fields])
    write_rows(path, schema, itertools.chain(first_row, rows))
    summary = json.dumps({"counts": reader.counts, "rejected": reader.rejected})
    temporary = summary_path.with_name(f"{summary_path.name}.{os.getpid()}.tmp")
    temporary.write_text(summary)
    temporary.replace(summary_path)


def find_rows(source: Source, roles: Roles) -> list[Path] | HubId | parallel.ByRole:
    """Find the files of one split.

    Raises:
        DataError: there is no such file, or none that can be read.
    """
    if isinstance(source.entry, Mapping):
        return _find_by_role(source.entry, source.key, roles)
    try:
        return sources.find_files(source.entry, key=source.key)
    except DataError as error:
        raise _with_hint(error, source, roles.fields_read) from None


def _find_by_role(entry: Mapping[str, str | list[str]], key: str, roles: Roles) -> parallel.ByRole:
    return parallel.find_parallel(
        entry, key=key, fields=roles.fields, fields_read=roles.fields_read
    )


def _with_hint(error: DataError, source: Source, fields_read: Sequence[Field]) -> DataError:
    """Say how parallel files are given where one of them is named alone."""
    hint = _parallel_hint(source, fields_read)
    if hint is None:
        return error
    return DataError(error.problem, place=error.place, remedy=hint)


def _parallel_hint(source: Source, fields_read: Sequence[Field]) -> str | None:
    """Return what to write where one of two parallel files is named alone."""
    if not isinstance(source.entry, str):
        return None
    path = Path.cwd() / source.entry
    return parallel.hint(path, key=source.key, fields_read=fields_read) if path.is_file() else None


# a field -> the first values of its column, None where there is no such column
Peek = Callable[[Field], list[Any] | None]


def peek(source: Source, columns: Mapping[str, str], document: Document) -> Peek:
    """Look at the first rows of a source, unchecked: they tell which fields the data has.

    Nothing is read before the first question.
    """
    entry = source.entry
    if isinstance(entry, Mapping):  # text files by role
        return lambda field: [] if field.name in entry else None
    roles = Roles((), columns=columns)

    @functools.cache
    def first_rows() -> list[Row]:
        located = sources.find_files(entry, key=source.key)
        if isinstance(located, HubId):
            located = download(located, split=source.split, key=source.key)
        header = not any(name.isdecimal() for name in columns.values())
        raw = formats.read_rows(located[0], document=document, header=header, bad=_ignore)
        return [row for _, row in itertools.islice(raw, PEEKED_ROWS)]

    def values(field: Field) -> list[Any] | None:
        rows = first_rows()
        keys = find_field(rows[0], field, roles) if rows else None
        if keys is None:
            return None
        column = (_value_or_none(row, keys) for row in rows)
        return [value for value in column if value is not None]

    return values


def _ignore(error: formats.BadRow) -> None:
    """Leave out a row that cannot be read: it is told of when all are read."""


def _value_or_none(row: Row, keys: tuple[str, ...]) -> Any:
    try:
        return value_at(row, keys)
    except BadValue:
        return None
