"""Data sets on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lmkit.data.formats import find_format
from lmkit.errors import DataError

# Endings that no data set on the hub has: a name that ends so is a path, though not one of ours.
FOREIGN = re.compile(
    r"\.(bz2|xz|zip|tar|tgz|gz|zst|7z|xlsx?|docx?|pdf|html?|xml|md|ya?ml|log|dat|pkl|pt|npy)$",
    re.IGNORECASE,
)
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?::([\w.,+-]+))?(?:@([\w./-]+))?")
SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclass(frozen=True)
class HubId:
    """A data set on the Hugging Face hub: ``name`` or ``org/name``, ``:config``, ``@revision``."""

    name: str
    config: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.name}{config}{revision}"


def may_be_hub_id(entry: str) -> bool:
    """Tell whether a name that is no path here may be one on the hub."""
    match = HUB_ID.fullmatch(entry)
    if not match or FOREIGN.search(match[1]) or find_format(Path(match[1])):
        return False
    # data/trian, where data/ is here: a typing error, not an organisation on the hub.
    return "/" not in match[1] or not Path(match[1]).parent.is_dir()


def parse_hub_id(entry: str, key: str) -> HubId:
    """Read ``ORG/NAME:CONFIG@REVISION``.

    Raises:
        DataError: it is none, or the hub is switched off and the data set is not cached.
    """
    match = HUB_ID.fullmatch(entry)
    if not match:
        remedy = "write it as ORG/NAME, ORG/NAME:CONFIG or ORG/NAME@REVISION"
        raise DataError(f"not a hub id: {entry}", place=key, remedy=remedy)
    hub = HubId(*match.groups())
    on = {"1", "ON", "YES", "TRUE"}
    switches = [name for name in SWITCHES if os.environ.get(name, "").upper() in on]
    if switches and not _is_cached(hub):
        switch = f"{switches[0]}={os.environ[switches[0]]}"
        raise DataError(
            f"nothing is found locally under {entry!r}, and the hub is switched off ({switch})",
            place=key,
            remedy=f"name a file or a directory, or unset {switches[0]} if a data set on the hub is meant",
        )
    return hub


def _is_cached(hub: HubId) -> bool:
    """Tell whether an earlier download may be used offline."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    caches = (
        os.environ.get("HF_DATASETS_CACHE") or home / "datasets",
        os.environ.get("HF_HUB_CACHE") or home / "hub",
    )
    name = hub.name.lower()
    names = {name.replace("/", "___"), "datasets--" + name.replace("/", "--")}
    return any(path.name.lower() in names for cache in caches for path in listing(Path(cache)))


def download(hub: HubId, *, split: str, key: str) -> list[Path]:
    """Return the Arrow files of one split of a data set on the hub; fetch them unless they are cached.

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
        raise DataError(
            f"{hub} cannot be loaded from the hub: {reason}",
            place=key,
            remedy=f"check the name, its config (NAME:CONFIG) and that it has a split {split!r}; offline, name a local file",
        ) from error
    return [Path(file["filename"]) for file in dataset.cache_files]


def listing(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted; nothing where there is no such folder."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
