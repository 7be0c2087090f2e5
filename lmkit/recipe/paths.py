"""The keys of a recipe that name files and folders."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmkit.recipe.schema import Recipe

PATH_KEYS = (
    ("data", "train"),
    ("data", "validation"),
    ("data", "test"),
    ("tokenizer", "train", "files"),
    ("tokenizer", "base"),
    ("model", "base"),
    ("eval", "metrics"),
)


def local_paths(recipe: Recipe) -> list[tuple[str, str]]:
    """Return the files and folders that a recipe names and that exist, each with its dotted key."""
    paths: list[tuple[str, str]] = []
    values = recipe.model_dump()
    for *sections, key in PATH_KEYS:
        value = (_section(values, sections) or {}).get(key)
        dotted = ".".join([*sections, key])
        paths += [(dotted, _expand_home(text)) for text in _texts(value) if _is_local(text)]
    return paths


def anchor_paths(values: dict[str, Any], folder: Path) -> None:
    """Let paths that do not exist from here, but do from a recipe's folder, be found from here."""

    def find_beside(text: str) -> str:
        beside = str(folder / text)
        is_here = Path(text).is_absolute() or _is_local(text)
        return beside if not is_here and _is_local(beside) else text

    _change_paths(values, find_beside)


def make_absolute(values: dict[str, Any]) -> None:
    """Make the paths that exist absolute."""

    def real_path(text: str) -> str:
        return os.path.realpath(_expand_home(text)) if _is_local(text) else text

    _change_paths(values, real_path)


def _change_paths(values: dict[str, Any], change: Callable[[str], str]) -> None:
    for *sections, key in PATH_KEYS:
        section = _section(values, sections)
        if section and section.get(key) is not None:
            section[key] = _change_texts(section[key], change)


def _section(values: Mapping[str, Any], names: list[str]) -> dict[str, Any] | None:
    section: Any = values
    for name in names:
        section = section.get(name) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else None


def _change_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Change a text, those of a list, or those by role."""
    if isinstance(value, list):
        return [_change_texts(entry, change) for entry in value]
    if isinstance(value, dict):
        return {role: _change_texts(entry, change) for role, entry in value.items()}
    return change(value) if isinstance(value, str) else value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    texts: list[str] = []
    for entry in value or ():
        texts += _texts(entry)
    return texts


def _is_local(text: str) -> bool:
    if not text:
        return False
    return os.path.exists(_expand_home(text)) or bool(glob.glob(text, recursive=True))


def _expand_home(text: str) -> str:
    """Replace ``~``; that of an unknown user stays, where ``Path.expanduser`` would raise."""
    return os.path.expanduser(text)
