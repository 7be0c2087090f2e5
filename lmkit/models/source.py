"""Where weights come from: a run, a model directory or a hub id. Found and checked without torch."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmkit.errors import ModelError, nearest
from lmkit.run import is_run

DESCRIPTION = (
    "lmkit.json"  # beside the weights: task, labels and the options that reading text needs
)


@dataclass(frozen=True)
class ModelSource:
    """A place to load from.

    Args:
        location: what ``from_pretrained`` takes: a directory or a hub id.
        run: the run directory the model belongs to, if any.
        is_adapter: a PEFT adapter over another model.
        description: the content of ``lmkit.json``; empty for models that lmkit did not make.
    """

    location: str
    run: Path | None
    is_adapter: bool
    description: dict[str, Any]


def is_model_directory(path: str | Path) -> bool:
    """Whether a directory holds a Hugging Face model or a PEFT adapter."""
    return (Path(path) / "config.json").is_file() or (Path(path) / "adapter_config.json").is_file()


def find_model(name: str, *, key: str = "model.base") -> ModelSource:
    """Find a run, a model directory or a hub id.

    Raises:
        ModelError: nothing is there, the run has no model yet, or the hub is needed and switched off.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if is_run(path):
            if not is_model_directory(path / "model"):
                raise ModelError(
                    "this run has no model: it did not finish",
                    place=f"{key}: {name}",
                    remedy="finish it with --resume, or start it anew with --overwrite",
                )
            return _directory(path / "model", path)
        if is_model_directory(path):
            return _directory(path, path.parent if is_run(path.parent) else None)
        raise ModelError(
            "neither a run nor a model: no recipe.yaml and no config.json in this directory",
            place=f"{key}: {name}",
            remedy=_runs_nearby(path),
        )
    if path.is_file():
        raise ModelError(
            "a file, not a run or a model directory",
            place=f"{key}: {name}",
            remedy="name the directory that holds config.json",
        )
    if not re.fullmatch(r"[\w][\w.\-]*(/[\w.\-]+)?", name) or name.startswith("runs/"):
        raise ModelError(
            "no such run or directory", place=f"{key}: {name}", remedy=_runs_nearby(path)
        )
    if not _in_hub_cache(name) and is_offline():
        raise ModelError(
            "no such run or directory, and the hub is switched off (HF_HUB_OFFLINE)",
            place=f"{key}: {name}",
            remedy=_runs_nearby(path),
        )
    return ModelSource(name, None, False, {})


def _directory(path: Path, run: Path | None) -> ModelSource:
    description: dict[str, Any] = {}
    if (path / DESCRIPTION).is_file():
        try:
            description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(
                f"not readable as JSON: {error}",
                place=str(path / DESCRIPTION),
                remedy="is the run whole? train it anew",
            ) from None
    return ModelSource(str(path), run, (path / "adapter_config.json").is_file(), description)


def _runs_nearby(path: Path) -> str:
    parent = path.parent if path.parent.is_dir() else Path(".")
    models = [
        str(found)
        for found in sorted(parent.iterdir())
        if found.is_dir() and (is_run(found) or is_model_directory(found))
    ]
    close = nearest(str(path), models)
    if close:
        return f"did you mean {close}?"
    return (
        f"here are: {', '.join(models[:8])}"
        if models
        else "give the path of a run, of a directory with config.json, or a hub id"
    )


def is_offline() -> bool:
    return any(
        os.environ.get(name, "").lower() in ("1", "true", "yes", "on")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _in_hub_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(
        isinstance(try_to_load_from_cache(name, file), str)
        for file in ("config.json", "adapter_config.json")
    )
