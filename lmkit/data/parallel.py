"""Parallel text files: line i of ``train.en`` and line i of ``train.de`` make one row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lmkit.data import formats, sources
from lmkit.data.hub import listing
from lmkit.data.row import short_path
from lmkit.errors import DataError, suggest
from lmkit.tasks.fields import Field

ByRole = dict[str, list[Path]]


def find_parallel(
    files: Mapping[str, str | list[str]],
    *,
    key: str,
    fields: Sequence[Field],
    fields_read: Sequence[Field],
) -> ByRole:
    """Find the text files of each role, as many for one as for the other.

    Whatever their names end in, they are read as lines.

    Args:
        files: what the recipe names, by role. key: the recipe's key, for messages.
        fields: all that the task has. fields_read: those that are to be read.

    Raises:
        DataError: an unknown or a missing role, a file that is not there or not text, unequal numbers of files.
    """
    _check_roles(files, key, fields, fields_read)
    paths: ByRole = {}
    for field in fields_read:
        text_files = sources.find_files(files[field.name], key=f"{key}.{field.name}", lines=True)
        assert isinstance(text_files, list)
        paths[field.name] = text_files
    if len({len(text_files) for text_files in paths.values()}) > 1:
        counts = ", ".join(f"{len(text_files)} for {role}" for role, text_files in paths.items())
        raise DataError(
            f"unequal numbers of files: {counts}",
            place=key,
            remedy="the first of one belongs to the first of the other",
        )
    return paths


def _check_roles(
    files: Mapping[str, object], key: str, fields: Sequence[Field], fields_read: Sequence[Field]
) -> None:
    names = [field.name for field in fields]
    for role in files:
        if role not in names:
            problem = f"this task has no column {role!r}"
            raise DataError(problem, place=key, remedy=suggest(role, names))
    for field in fields_read:
        if field.kind not in ("text", "label"):
            remedy = "name one file with both, such as .conll or .jsonl"
            raise DataError(f"{field.name} are not read line by line", place=key, remedy=remedy)
        if field.name not in files:
            example = ", ".join(f"{field.name}: FILE" for field in fields_read)
            remedy = f"for example {{{example}}}"
            raise DataError(f"no file for {field.name!r}", place=key, remedy=remedy)


def read_parallel(paths: Mapping[str, Path]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and text by role, for every line that is not blank in all files.

    A line that is blank everywhere is no row, as in a ``.txt`` file; one that is blank somewhere is a bad row, which
    the check of rows refuses.

    Raises:
        DataError: the files do not have equally many lines; names both counts.
    """
    streams = {role: formats.read_lines(path) for role, path in paths.items()}
    for number, lines in enumerate(itertools.zip_longest(*streams.values()), 1):
        row = dict(zip(streams, lines, strict=True))
        if None in lines:
            raise _unequal(paths, number - 1, row, streams)
        if any(line.strip() for line in lines):
            yield number, row


def _unequal(
    paths: Mapping[str, Path],
    lines_before: int,
    last: Mapping[str, str | None],
    streams: Mapping[str, Iterator[str]],
) -> DataError:
    """Count to the ends of the longer files, and name the lines of each."""
    counts = []
    for role, path in paths.items():
        count = lines_before
        if last[role] is not None:
            count += 1 + sum(1 for _ in streams[role])
        counts.append(f"{short_path(path)} has {count}")
    return DataError(
        f"unequal numbers of lines: {', '.join(counts)}",
        place=short_path(next(iter(paths.values()))),
        remedy="line i of one file belongs to line i of the other; nothing tells where one is missing",
    )


def _sibling(path: Path) -> Path | None:
    """Return the only other text file whose name differs in one part after the first: ``train.de`` beside ``train.en``."""
    alike = [other for other in listing(path.parent) if _differs_in_one_part(path, other)]
    siblings = [other for other in alike if other.is_file() and formats.may_be_text(other)]
    return siblings[0] if len(siblings) == 1 else None


def _differs_in_one_part(path: Path, other: Path) -> bool:
    parts, other_parts = path.name.split("."), other.name.split(".")
    if len(other_parts) != len(parts) or other_parts[0] != parts[0]:
        return False
    return sum(a != b for a, b in zip(parts, other_parts, strict=True)) == 1


def hint(path: Path, *, key: str, fields_read: Sequence[Field]) -> str | None:
    """Return what to write where one of two parallel files is named alone; None where that does not fit."""
    texts = [field.name for field in fields_read if field.kind == "text"]
    if len(texts) != 2 or len(fields_read) != 2 or not key.startswith("data."):
        return None
    other = _sibling(path)
    if other is None:
        return None
    both = f"{texts[0]}: {short_path(path)}, {texts[1]}: {short_path(other)}"
    return f"line by line with the file beside it: {key}={{{both}}}"
