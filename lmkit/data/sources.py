"""Find the files that a recipe names: paths, globs, directories and samples, or a data set on the Hugging Face hub."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lmkit.data.formats import KNOWN, find_format, may_be_text
from lmkit.data.hub import HubId, listing, may_be_hub_id, parse_hub_id
from lmkit.data.row import short_path
from lmkit.errors import DataError, nearest

SAMPLES = Path(__file__).parents[1] / "samples"
SAMPLE = "sample:"
HUB = "hf://datasets/"


@dataclass(frozen=True)
class Source:
    """What a recipe names as the rows of a split.

    Args:
        entry: see ``find_files``, and ``parallel.find_parallel`` for files by role.
        key: the recipe's key, for messages: ``data.train``.
        split: the split of a hub data set.
    """

    entry: str | list[str] | Mapping[str, str | list[str]]
    key: str
    split: str


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_files(source: str | list[str], *, key: str, lines: bool = False) -> list[Path] | HubId:
    """Find the files that a source names, in order; or return the hub id where only that can be meant.

    A source is a path, a glob (``**`` too), a directory (all data files in and below it, sorted,
    hidden ones left out), ``sample:NAME/FILE``, a hub id (``hf://datasets/ORG/NAME`` says so explicitly),
    or a list of all but the last.

    Args:
        key: the recipe's key, for messages: ``data.train``.
        lines: text files are meant, whatever their names end in: neither a directory nor a hub id.

    Raises:
        DataError: nothing is found, or nothing of a format that can be read.
    """
    entries = [source] if isinstance(source, str) else source
    if not entries:
        raise DataError("an empty list", place=key, remedy="name at least one file")
    paths: list[Path] = []
    for files in [_find(entry, key, lines=lines) for entry in entries]:
        if not isinstance(files, HubId):
            paths += files
        elif len(entries) == 1:
            return files
        else:
            remedy = "a hub id stands alone, not in a list"
            raise DataError(f"no such file: {files}", place=key, remedy=remedy)
    return paths


def _find(entry: str, key: str, *, lines: bool) -> list[Path] | HubId:
    is_sample = entry.startswith(SAMPLE)
    folder = SAMPLES if is_sample else Path.cwd()
    path = folder / os.path.expanduser(entry.removeprefix(SAMPLE))
    is_file = bool(entry.strip()) and os.path.isfile(path)
    if is_file and not entry.startswith(HUB):
        _check_format(path, entry, key, lines=lines)
        return [path]
    return _find_no_file(entry, path, folder, key, lines=lines)


def _find_no_file(
    entry: str, path: Path, folder: Path, key: str, *, lines: bool
) -> list[Path] | HubId:
    """Find the files of a directory or a glob, or read a hub id."""
    if not entry.strip():
        raise DataError("an empty path", place=key, remedy="name a file")
    if entry.startswith(HUB) and not lines:
        return parse_hub_id(entry.removeprefix(HUB), key)
    if os.path.isdir(path):
        if lines:
            remedy = "name the text file in it, a list, or a glob"
            raise DataError(f"a directory: {entry}", place=key, remedy=remedy)
        return _files_in(path, key)
    if os.path.isfile(path):
        _check_format(path, entry, key, lines=lines)  # under hf:, where text files are meant
        return [path]
    if any(sign in entry for sign in "*?["):
        return _matches(entry, folder, key, lines=lines)
    if not lines and may_be_hub_id(entry):
        return parse_hub_id(entry, key)
    close = nearest(path.name, [beside.name for beside in listing(path.parent)])
    hint = ""
    if close:
        hint = f"; did you mean {close if folder == SAMPLES else Path(entry).with_name(close)}?"
    raise DataError(
        f"no such file: {entry}{hint}", place=key, remedy=f"looked in {short_path(folder)}"
    )


def _matches(entry: str, folder: Path, key: str, *, lines: bool) -> list[Path]:
    """Return the data files that a glob matches."""
    name = os.path.expanduser(entry.removeprefix(SAMPLE))
    pattern = os.path.join(glob.escape(str(folder)), name)
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    files = [path for path in matches if path.is_file() and _can_read(path, lines=lines)]
    if files:
        return files
    if matches:
        raise DataError(f"no data file among what {entry} matches", place=key, remedy=KNOWN)
    remedy = f"looked in {short_path(folder)}"
    raise DataError(f"no file matches {entry}", place=key, remedy=remedy)


def _can_read(path: Path, *, lines: bool) -> bool:
    return may_be_text(path) if lines else find_format(path) is not None


def _check_format(path: Path, entry: str, key: str, *, lines: bool) -> None:
    if _can_read(path, lines=lines):
        return
    raise _unknown_format(entry, key, lines=lines)


def _unknown_format(entry: str, key: str, *, lines: bool) -> DataError:
    if lines:
        remedy = f"parallel files are text, a row a line; one file with columns stands alone: {key.rpartition('.')[0]}={entry}"
        return DataError(f"not a text file: {entry}", place=key, remedy=remedy)
    return DataError(f"not a format that lmkit reads: {entry}", place=key, remedy=KNOWN)


def _files_in(folder: Path, key: str) -> list[Path]:
    # What datasets' save_to_disk writes: all splits side by side, which must never be mixed silently.
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(path.name for path in listing(folder) if path.is_dir())
        raise DataError(
            f"{short_path(folder)} holds several splits: {splits}",
            place=key,
            remedy="name the directory of one of them",
        )
    about: set[str] = set()
    if (folder / "state.json").is_file():
        about = {"dataset_info.json", "state.json"}
    files = []
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not is_hidden and find_format(path) and path.name not in about:
            files.append(path)
    if not files:
        problem = f"no data file in the directory {short_path(folder)}"
        raise DataError(problem, place=key, remedy=KNOWN)
    return files
