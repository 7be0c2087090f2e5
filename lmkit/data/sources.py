"""From what the recipe says to files: paths, globs, directories and samples, or a data set on the Hugging Face hub."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lmkit.data.formats import KNOWN, find_format, may_be_text
from lmkit.data.row import short_path
from lmkit.errors import DataError, nearest

SAMPLES = Path(__file__).parents[1] / "samples"
# Endings that no data set on the hub has: a name that ends so is a path, though not one of ours.
FOREIGN = re.compile(
    r"\.(bz2|xz|zip|tar|tgz|gz|zst|7z|xlsx?|docx?|pdf|html?|xml|md|ya?ml|log|dat|pkl|pt|npy)$",
    re.IGNORECASE,
)
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?::([\w.,+-]+))?(?:@([\w./-]+))?")


@dataclass(frozen=True)
class HubId:
    """A data set on the Hugging Face hub: ``name`` or ``org/name``, ``:config``, ``@revision``."""

    name: str
    config: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return (
            self.name
            + (f":{self.config}" if self.config else "")
            + (f"@{self.revision}" if self.revision else "")
        )


@dataclass(frozen=True)
class Source:
    """What a recipe names as the rows of a split.

    Args:
        entry: see ``find_files``, and ``parallel.find_parallel`` for files by role.
        key: the recipe's key, for messages: ``data.train``.
        split: the split of a hub data set.
        folders: where relative paths are looked up; the first that has the path wins.
    """

    entry: str | list[str] | Mapping[str, str | list[str]]
    key: str
    split: str
    folders: list[Path]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------- finding


def find_files(
    source: str | list[str], *, key: str, folders: list[Path], lines: bool = False
) -> list[Path] | HubId:
    """The files that a source names, in order; or the hub id where only that can be meant.

    A source is a path, a glob (``**`` too), a directory (all data files in and below it, sorted,
    hidden ones left out), ``sample:NAME/FILE``, a hub id (``hf://datasets/ORG/NAME`` says so explicitly),
    or a list of all but the last.

    Args:
        key: the recipe's key, for messages: ``data.train``.
        folders: where relative paths are looked up; the first that has the path wins.
        lines: text files are meant, whatever their names end in: neither a directory nor a hub id.

    Raises:
        DataError: nothing is found, or nothing of a format that can be read.
    """
    entries = [source] if isinstance(source, str) else source
    if not entries:
        raise DataError("an empty list", place=key, remedy="name at least one file")
    found = [_find(entry, key, folders, lines) for entry in entries]
    for files in found:
        if isinstance(files, HubId):
            if len(found) == 1:
                return files
            raise DataError(
                f"no such file: {files}", place=key, remedy="a hub id stands alone, not in a list"
            )
    return [path for files in found if not isinstance(files, HubId) for path in files]


def _find(entry: str, key: str, folders: list[Path], lines: bool) -> list[Path] | HubId:
    if not entry.strip():
        raise DataError("an empty path", place=key, remedy="name a file")
    if entry.startswith("hf://datasets/") and not lines:
        return _hub_id(entry.removeprefix("hf://datasets/"), key)
    name = os.path.expanduser(entry)
    if entry.startswith("sample:"):
        name, folders = entry.removeprefix("sample:"), [SAMPLES]
    for path in (folder / name for folder in folders):
        if os.path.isdir(path):
            if lines:
                raise DataError(
                    f"a directory: {entry}",
                    place=key,
                    remedy="name the text file in it, a list, or a glob",
                )
            return _files_in(path, key)
        if os.path.isfile(path):
            if not _reads(path, lines) and lines:
                remedy = f"parallel files are text, a row a line; one file with columns stands alone: {key.rpartition('.')[0]}={entry}"
                raise DataError(f"not a text file: {entry}", place=key, remedy=remedy)
            if not _reads(path, lines):
                raise DataError(f"not a format that lmkit reads: {entry}", place=key, remedy=KNOWN)
            return [path]
    if any(sign in name for sign in "*?["):
        for folder in folders:
            matches = sorted(
                glob.glob(os.path.join(glob.escape(str(folder)), name), recursive=True)
            )
            if files := [
                path for path in map(Path, matches) if path.is_file() and _reads(path, lines)
            ]:
                return files
            if matches:
                raise DataError(f"no data file among what {entry} matches", place=key, remedy=KNOWN)
        raise DataError(f"no file matches {entry}", place=key, remedy=_looked_in(folders))
    if not lines and _may_be_hub_id(entry, folders):
        return _hub_id(entry, key)
    names = [p.name for folder in folders for p in listing((folder / name).parent)]
    close = nearest(Path(name).name, names)
    hint = (
        f"; did you mean {Path(entry).with_name(close) if not entry.startswith('sample:') else close}?"
        if close
        else ""
    )
    raise DataError(f"no such file: {entry}{hint}", place=key, remedy=_looked_in(folders))


def _reads(path: Path, lines: bool) -> bool:
    return may_be_text(path) if lines else find_format(path) is not None


def _files_in(folder: Path, key: str) -> list[Path]:
    # What datasets' save_to_disk writes: all splits side by side, which must never be mixed silently.
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(p.name for p in listing(folder) if p.is_dir())
        raise DataError(
            f"{short_path(folder)} holds several splits: {splits}",
            place=key,
            remedy="name the directory of one of them",
        )
    about = {"dataset_info.json", "state.json"} if (folder / "state.json").is_file() else set()
    files = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and find_format(path) and path.name not in about:
            files.append(path)
    if not files:
        raise DataError(
            f"no data file in the directory {short_path(folder)}", place=key, remedy=KNOWN
        )
    return files


def listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _looked_in(folders: list[Path]) -> str:
    return "looked in " + ", ".join(dict.fromkeys(short_path(folder) for folder in folders))


# ---------------------------------------------------------------------------------- the hub


def _may_be_hub_id(entry: str, folders: list[Path]) -> bool:
    if (
        not (match := HUB_ID.fullmatch(entry))
        or FOREIGN.search(match[1])
        or find_format(Path(match[1]))
    ):
        return False
    # data/trian, where data/ is here: a typing error, not an organisation on the hub.
    return "/" not in match[1] or not any((folder / match[1]).parent.is_dir() for folder in folders)


def _hub_id(entry: str, key: str) -> HubId:
    if not (match := HUB_ID.fullmatch(entry)):
        raise DataError(
            f"not a hub id: {entry}",
            place=key,
            remedy="write it as ORG/NAME, ORG/NAME:CONFIG or ORG/NAME@REVISION",
        )
    hub = HubId(*match.groups())
    switches = [
        v
        for v in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
        if os.environ.get(v, "").upper() in {"1", "ON", "YES", "TRUE"}
    ]
    if switches and not _is_cached(hub):
        raise DataError(
            f"nothing is found locally under {entry!r}, and the hub is switched off ({switches[0]}={os.environ[switches[0]]})",
            place=key,
            remedy=f"name a file or a directory, or unset {switches[0]} if a data set on the hub is meant",
        )
    return hub


def _is_cached(hub: HubId) -> bool:
    """Whether an earlier download may be used offline."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    caches = (
        os.environ.get("HF_DATASETS_CACHE") or home / "datasets",
        os.environ.get("HF_HUB_CACHE") or home / "hub",
    )
    names = {
        hub.name.replace("/", "___").lower(),
        "datasets--" + hub.name.replace("/", "--").lower(),
    }
    return any(path.name.lower() in names for cache in caches for path in listing(Path(cache)))


def download(hub: HubId, *, split: str, key: str) -> list[Path]:
    """The Arrow files of one split of a data set on the hub, fetched unless they are cached.

    Raises:
        DataError: the hub cannot be reached, or has no such data set, config or split.
    """
    import datasets

    try:
        dataset = datasets.load_dataset(
            hub.name, hub.config, split=split, revision=hub.revision, keep_in_memory=False
        )
    except Exception as error:  # whatever it is, it is about this id or about the network
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        remedy = f"check the name, its config (NAME:CONFIG) and that it has a split {split!r}; offline, name a local file"
        raise DataError(
            f"{hub} cannot be loaded from the hub: {reason}", place=key, remedy=remedy
        ) from error
    return [Path(file["filename"]) for file in dataset.cache_files]
