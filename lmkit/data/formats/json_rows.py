"""JSON: a row a line (``.jsonl``), or a list of rows (``.json``)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lmkit.data.formats.base import BadRow, Format, Layout, NumberedRows, numbered_lines
from lmkit.data.row import short_path
from lmkit.errors import DataError

BLANK = re.compile(r"[ \t\n\r]*")


def read_json_lines(path: Path, layout: Layout) -> NumberedRows:
    """Stream the objects of a file that has one a line; blank lines are none."""
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, _not_json(error, line, path, number)
            continue
        yield number, row if isinstance(row, dict) else _no_object(row, path, number)


def _not_json(error: Exception, line: str, path: Path, number: int) -> BadRow:
    problem = f"not JSON: {error}"
    if isinstance(error, json.JSONDecodeError):
        problem = f"not JSON at column {error.colno}: {error.msg}"
    remedy = "each line is one whole JSON object"
    return BadRow(problem, path=path, line=number, remedy=remedy, row=line)


def _no_object(row: Any, path: Path, line: int) -> BadRow:
    problem = f"not a JSON object but {json.dumps(row)[:60]}"
    remedy = 'a row is an object: {"text": "..."}; a list of objects belongs in a .json file'
    return BadRow(problem, path=path, line=line, remedy=remedy, row=row)


def read_json(path: Path, layout: Layout) -> NumberedRows:
    """Stream the objects of a JSON list, or of the list under ``data``, element by element for their lines."""
    text = "\n".join(line for _, line in numbered_lines(path))
    try:
        at = _list_start(text, path)
        line, counted = 1, 0
        while not text.startswith("]", at):
            row, end = json.JSONDecoder().raw_decode(text, at)
            line, counted = line + text.count("\n", counted, at), at
            yield line, row if isinstance(row, dict) else _no_object(row, path, line)
            at = _after_blank(text, end)
            if not text.startswith("]", at):
                at = _after_sign(text, ",", at)
    except (ValueError, RecursionError) as error:
        problem, place = f"not JSON: {error}", short_path(path)
        if isinstance(error, json.JSONDecodeError):
            problem = f"not JSON at column {error.colno}: {error.msg}"
            place = f"{place}:{error.lineno}"
        raise DataError(problem, place=place, remedy="correct the file") from None


def _list_start(text: str, path: Path) -> int:
    """Return where the first row begins, or the end of the list."""
    start = _after_blank(text, 0)
    if text.startswith("{", start):
        start = _data_start(text, start)
    if not text.startswith("[", start):
        problem = 'neither a list of objects nor an object with a list under "data"'
        remedy = "one JSON object a line belongs in a .jsonl file"
        raise DataError(problem, place=short_path(path), remedy=remedy)
    return _after_sign(text, "[", start)


def _data_start(text: str, start: int) -> int:
    """Return where the list under ``data`` begins in an object; the text's end where there is none."""
    decode = json.JSONDecoder().raw_decode
    at = _after_blank(text, start + 1)
    while text.startswith('"', at):
        name, at = decode(text, at)
        at = _after_sign(text, ":", _after_blank(text, at))
        if name == "data" and text.startswith("[", at):
            return at
        _, at = decode(text, at)
        at = _after_blank(text, at)
        if not text.startswith("}", at):
            at = _after_sign(text, ",", at)
    return len(text)


def _after_sign(text: str, sign: str, at: int) -> int:
    if not text.startswith(sign, at):
        raise json.JSONDecodeError(f"Expecting {sign!r}", text, at)
    return _after_blank(text, at + 1)


def _after_blank(text: str, at: int) -> int:
    match = BLANK.match(text, at)
    assert match is not None  # it matches nothing, too
    return match.end()


JSON_LINES = Format("jsonl", (".jsonl", ".ndjson"), read_json_lines)
JSON = Format("json", (".json",), read_json)
