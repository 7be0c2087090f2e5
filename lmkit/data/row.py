"""Rows and the files they come from, as far as neither numpy nor Arrow is needed."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]
OnBadRow = Literal["error", "skip"]
FORMAT = (
    1  # of the cached files: raise it with whatever changes what load_rows makes of the same input
)
SLICE_COLUMN = "_slice:"  # before the name of a column that only eval.slices wants: no part of a row that tasks see
LEAVE_OUT = "correct it, or leave such rows out with data.on_bad_row=skip"


@dataclass(frozen=True)
class DataFile:
    """A file that rows came from: its path, the rows read of it (rejected ones too), its hash and size."""

    path: str
    rows: int
    sha256: str
    bytes: int


def short_path(path: Path) -> str:
    """Name a file for messages: relative to the current directory where it lies below it."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def hash_of(value: Any) -> str:
    """Return the SHA-256 of a value that JSON can hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
