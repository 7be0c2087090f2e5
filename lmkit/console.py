"""The only file that prints: progress, tables, warnings, and the one JSON object of ``--json``.

Everything for people goes to stderr where ``--json`` is on, to stdout otherwise; only the first
process of several prints; ``-q`` leaves warnings and errors.
"""

from __future__ import annotations

import json
import math
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

STARTED_AS = "LMKIT_STARTED_AS"  # in the environment of processes that lmkit starts: the command the user gave


@dataclass
class _State:
    as_json: bool = False
    level: int = 1  # 0 quiet, 1 normal, 2 verbose
    owns_process: bool = False


_state = _State()


def configure(*, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
    """Set once by the command line, before anything is printed."""
    _state.as_json, _state.level = as_json, 0 if quiet else 2 if verbose else 1


def own_process() -> None:
    """The process is the command's, not a program's that calls lmkit."""
    _state.owns_process = True


def owns_process() -> bool:
    return _state.owns_process


def is_verbose() -> bool:
    return _state.level > 1


def is_quiet() -> bool:
    return _state.level < 1


def is_json() -> bool:
    return _state.as_json


def is_started_by_lmkit() -> bool:
    """Whether this is one of several processes behind one command, which itself says how they ended."""
    return STARTED_AS in os.environ


def is_first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _write(text: str, stream: TextIO) -> None:
    if is_first_process():
        print(text, file=stream, flush=True)


def say(text: str = "") -> None:
    """A line for the user."""
    if _state.level > 0:
        _write(text, sys.stderr if _state.as_json else sys.stdout)


def warn(text: str) -> None:
    """A line that is shown with ``-q`` too."""
    _write(f"warning: {text}", sys.stderr)


def fail(text: str) -> None:
    """The message of an error; every process says its own."""
    print(f"lmkit: {text}", file=sys.stderr, flush=True)


class Result(Protocol):
    """A command's result, which has a form for ``--json``."""

    def to_json(self) -> dict[str, Any]: ...


class ShownResult(Result, Protocol):
    """A command's result that has a form for people, too."""

    def to_text(self) -> str: ...


def emit(result: Result) -> None:
    """Print the one JSON object that ``--json`` promises on stdout; nothing without it."""
    if _state.as_json and not is_started_by_lmkit():
        emit_line(result.to_json())


def show(result: ShownResult) -> None:
    """Print a result for people, and with ``--json`` its one JSON object."""
    say(result.to_text())
    emit(result)


def emit_line(value: Any) -> None:
    """A JSON line on stdout (``lmkit predict``)."""
    _write(json.dumps(value, ensure_ascii=False), sys.stdout)


def _width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two, combining marks none."""
    return sum(
        2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1
        for c in text
    )


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns; numbers to the right.

    >>> print(table(["metric", "value"], [["f1", 0.5]]))
    metric  value
    f1        0.5
    """
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    columns = [_align(column) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "-"


def _align(column: Sequence[str]) -> list[str]:
    """Pad the cells of a column, whose first is its header, to one width; numbers to the right."""
    width = max(_width(cell) for cell in column)
    is_numeric = len(column) > 1 and all(_is_number(cell) for cell in column[1:])
    padding = [" " * (width - _width(cell)) for cell in column]
    if is_numeric:
        return [space + cell for space, cell in zip(padding, column, strict=True)]
    return [cell + space for space, cell in zip(padding, column, strict=True)]


def readable(number: float | None, digits: int = 3) -> str:
    """Write a number as people read it; a dash for none.

    >>> readable(0.12345), readable(1234.5), readable(45.678), readable(None)
    ('0.123', '1,234', '45.7', '–')
    """
    if number is None or not math.isfinite(number):
        return "–"
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.{digits}f}"


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    total: int | None,
    what: str,
    unit: str = "step",
    initial: int = 0,
) -> Any:
    """Return a tqdm bar on stderr (only on a terminal, only in the first process); iterating it yields the items."""
    from tqdm import tqdm

    shown = _state.level > 0 and is_first_process() and sys.stderr.isatty()
    return tqdm(
        items,
        total=total,
        desc=what,
        unit=unit,
        initial=initial,
        disable=not shown,
        dynamic_ncols=True,
        leave=False,
    )
