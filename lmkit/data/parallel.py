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
    source: Mapping[str, str | list[str]],
    *,
    key: str,
    fields: Sequence[Field],
    wanted: Sequence[Field],
) -> ByRole:
    """The text files of each role, as many for one as for the other; whatever their names end in, they are read as lines.

    Args:
        fields: all that the task has. wanted: those that are to be read.

    Raises:
        DataError: an unknown or a missing role, a file that is not there or not text, unequal numbers of files.
    """
    names = [field.name for field in fields]
    if unknown := next((role for role in source if role not in names), None):
        raise DataError(
            f"this task has no column {unknown!r}", place=key, remedy=suggest(unknown, names)
        )
    for field in wanted:
        if field.kind not in ("text", "label"):
            remedy = "name one file with both, such as .conll or .jsonl"
            raise DataError(f"{field.name} are not read line by line", place=key, remedy=remedy)
        if field.name not in source:
            remedy = "for example {" + ", ".join(f"{each.name}: FILE" for each in wanted) + "}"
            raise DataError(f"no file for {field.name!r}", place=key, remedy=remedy)
    found: ByRole = {}
    for field in wanted:
        files = sources.find_files(source[field.name], key=f"{key}.{field.name}", lines=True)
        assert isinstance(files, list)
        found[field.name] = files
    counts = {role: len(paths) for role, paths in found.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{count} for {role}" for role, count in counts.items())
        raise DataError(
            f"unequal numbers of files: {said}",
            place=key,
            remedy="the first of one belongs to the first of the other",
        )
    return found


def read_parallel(paths: Mapping[str, Path]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and text by role, for every line that is not blank in all files.

    A line that is blank everywhere is no row, as in a ``.txt`` file; one that is blank somewhere is a bad row, which
    whoever checks the rows will say.

    Raises:
        DataError: the files do not have equally many lines; names both counts.
    """
    streams = {role: formats.read_lines(path) for role, path in paths.items()}
    for number, lines in enumerate(itertools.zip_longest(*streams.values()), 1):
        if any(line is None for line in lines):
            _refuse(paths, number - 1, dict(zip(streams, lines, strict=True)), streams)
        if any(line.strip() for line in lines):
            yield number, dict(zip(streams, lines, strict=True))


def _refuse(
    paths: Mapping[str, Path],
    before: int,
    last: Mapping[str, str | None],
    streams: Mapping[str, Iterator[str]],
) -> None:
    """Count to the ends of the longer files, and say how many lines each has."""
    counts = {
        role: before + (last[role] is not None) + sum(1 for _ in stream)
        for role, stream in streams.items()
    }
    said = ", ".join(f"{short_path(paths[role])} has {count}" for role, count in counts.items())
    raise DataError(
        f"unequal numbers of lines: {said}",
        place=short_path(next(iter(paths.values()))),
        remedy="line i of one file belongs to line i of the other; nothing tells where one is missing",
    )


def sibling(path: Path) -> Path | None:
    """The only other text file whose name differs in one part after the first: ``train.de`` beside ``train.en``."""
    parts = path.name.split(".")

    def differs_in_one(other: Path) -> bool:
        others = other.name.split(".")
        if len(others) != len(parts) or others[0] != parts[0]:
            return False
        return sum(a != b for a, b in zip(parts, others, strict=True)) == 1

    beside = [
        p
        for p in listing(path.parent)
        if p.is_file() and formats.may_be_text(p) and differs_in_one(p)
    ]
    return beside[0] if len(beside) == 1 else None


def hint(path: Path, *, key: str, wanted: Sequence[Field]) -> str | None:
    """What to write where one of two parallel files was named alone; None where there is no such pair or no use for it."""
    texts = [field.name for field in wanted if field.kind == "text"]
    other = sibling(path) if len(texts) == len(wanted) == 2 and key.startswith("data.") else None
    if other is None:
        return None
    return f"line by line with the file beside it: {key}={{{texts[0]}: {short_path(path)}, {texts[1]}: {short_path(other)}}}"
