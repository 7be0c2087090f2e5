"""From a file to raw rows, each with its line or row number: ``read_rows`` streams every format, however large the file."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from lmkit.data.sources import COMPRESSIONS, KNOWN, format_of, shown
from lmkit.errors import DataError

Row = dict[str, Any]
Document = Literal["line", "paragraph", "file"]
MAGIC = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x1f\x8b": "gzip data: its name should end in .gz",
    b"\x28\xb5\x2f\xfd": "zstd data: its name should end in .zst",
    b"PAR1": "parquet data: its name should end in .parquet",
    b"PK\x03\x04": "a zip archive (or a spreadsheet)",
}


class BadRow(DataError):
    """A row that cannot be read, in a file that otherwise can; ``row`` is what is there."""

    def __init__(self, problem: str, *, path: Path, line: int, remedy: str, row: Any):
        self.line, self.row = line, row
        place = f"{shown(path)}:{line}"
        super().__init__(
            problem, place=place, remedy=f"{remedy}; or leave the row out: data.on_bad_row=skip"
        )


def read_rows(
    path: Path,
    *,
    document: Document = "line",
    header: bool = True,
    bad: Callable[[BadRow], None] | None = None,
) -> Iterator[tuple[int, Row]]:
    """Stream a file's rows, each with its number, counted from 1.

    The number is that of the row's first line; of the row itself in parquet and Arrow files. Memory does not
    grow with the file, but for ``.json``, which is parsed whole. CoNLL rows have ``tokens`` (the first column),
    ``tags`` (the last), every column under its position (``"0"``, ``"1"``, ...), and the line of each token
    under ``_lines``.

    Args:
        document: what is one row of a text file: a line that is not blank, a paragraph, or the file.
        header: whether the first line of csv and tsv names the columns; else they are ``"0"``, ``"1"``, ...
        bad: called with each row that cannot be read, in its turn; None: it is raised.

    Raises:
        DataError: the file cannot be read, or not as what its name says.
    """
    kind = format_of(path)
    rows: Iterator[tuple[int, Row | BadRow]]
    if kind == "text":
        rows = _text_rows(path, document)
    elif kind == "jsonl":
        rows = _jsonl_rows(path)
    elif kind == "json":
        rows = _json_rows(path)
    elif kind in ("csv", "tsv"):
        rows = _table_rows(path, _csv_cells(path) if kind == "csv" else _tsv_cells(path), header)
    elif kind in ("conll", "conllu"):
        rows = _conll_rows(path, kind == "conllu")
    elif kind in ("parquet", "arrow"):
        rows = _column_rows(path, kind)
    else:
        raise DataError("not a format that lmkit reads", place=shown(path), remedy=KNOWN)
    try:
        for number, row in rows:
            if not isinstance(row, BadRow):
                yield number, row
            elif bad is None:
                raise row
            else:
                bad(row)
    except _UNREADABLE as error:
        raise _broken(path, error) from error


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, blank ones too.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    try:
        for _, line in _lines(path):
            yield line
    except _UNREADABLE as error:
        raise _broken(path, error) from error


_UNREADABLE = (OSError, EOFError, zlib.error)


def _broken(path: Path, error: Exception) -> DataError:
    remedy = "the file is broken, incomplete or not readable: fetch or write it again"
    return DataError(f"cannot be read: {error}", place=shown(path), remedy=remedy)


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix.lower() == ".gz":
        import gzip

        return gzip.open(path, "rb")
    if path.suffix.lower() == ".zst":
        import pyarrow  # its reader notices a truncated file; zstandard's does not

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""The lines of a UTF-8 file without their ends: only \n and \r\n end one, never U+2028 or U+0085."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                _check_start(line, path)
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode()
            except UnicodeDecodeError as error:
                problem = f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
                remedy = f"save the file as UTF-8, for example: iconv -f latin1 -t utf-8 {path.name} > new-{path.name}"
                raise DataError(problem, place=f"{shown(path)}:{number}", remedy=remedy) from None


def _check_start(start: bytes, path: Path) -> None:
    what = next((what for magic, what in MAGIC.items() if start.startswith(magic)), None)
    if what is None and b"\0" in start[:4]:
        what = "NUL bytes: UTF-16 text, or no text at all"
    if what:
        utf16 = "save the file as UTF-8, for example: iconv -f utf-16 -t utf-8"
        remedy = utf16 if "UTF-16" in what else "rename it, or export it as UTF-8 text"
        raise DataError(
            f"not UTF-8 text: the file begins with {what}", place=f"{shown(path)}:1", remedy=remedy
        )


def _text_rows(path: Path, document: Document) -> Iterator[tuple[int, Row]]:
    held: list[str] = []
    start = 1
    for number, line in itertools.chain(
        _lines(path), [(0, "")]
    ):  # a last blank line ends the last paragraph
        if document == "line":
            if line.strip():
                yield number, {"text": line}
        elif line.strip() or (document == "file" and number):
            start = start if held else number
            held.append(line)
        elif held and (document == "paragraph" or any(map(str.strip, held))):
            yield start, {"text": "\n".join(held)}
            held = []


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            remedy = "each line is one whole JSON object"
            yield (
                number,
                BadRow(f"not JSON{where}: {what}", path=path, line=number, remedy=remedy, row=line),
            )
            continue
        yield number, row if isinstance(row, dict) else _no_object(row, path, number)


def _no_object(row: Any, path: Path, line: int) -> BadRow:
    remedy = 'a row is an object: {"text": "..."}; a list of objects belongs in a .json file'
    return BadRow(
        f"not a JSON object but {json.dumps(row)[:60]}",
        path=path,
        line=line,
        remedy=remedy,
        row=row,
    )


def _json_rows(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    """Rows of a JSON list, or of the list under ``data``: element by element, for their lines."""
    text = "\n".join(line for _, line in _lines(path))
    decode, blank = json.JSONDecoder().raw_decode, re.compile(r"[ \t\n\r]*")

    def after_blank(at: int) -> int:
        return blank.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too

    def expect(sign: str, at: int) -> int:
        if not text.startswith(sign, at):
            raise json.JSONDecodeError(f"Expecting {sign!r}", text, at)
        return after_blank(at + 1)

    problem = 'neither a list of objects nor an object with a list under "data"'
    shape = DataError(
        problem, place=shown(path), remedy="one JSON object a line belongs in a .jsonl file"
    )
    try:
        start = after_blank(0)
        if text.startswith("{", start):
            at = after_blank(start + 1)
            while text.startswith('"', at):
                name, at = decode(text, at)
                at = expect(":", after_blank(at))
                if name == "data" and text.startswith("[", at):
                    break
                _, at = decode(text, at)
                at = after_blank(at)
                at = at if text.startswith("}", at) else expect(",", at)
            else:
                raise shape
            start = at
        elif not text.startswith("[", start):
            raise shape
        at, line, counted = expect("[", start), 1, 0
        while not text.startswith("]", at):
            row, end = decode(text, at)
            line, counted = line + text.count("\n", counted, at), at
            yield line, row if isinstance(row, dict) else _no_object(row, path, line)
            at = after_blank(end)
            at = at if text.startswith("]", at) else expect(",", at)
    except (ValueError, RecursionError) as error:
        problem, place = f"not JSON: {error}", shown(path)
        if isinstance(error, json.JSONDecodeError):
            problem, place = (
                f"not JSON at column {error.colno}: {error.msg}",
                f"{place}:{error.lineno}",
            )
        raise DataError(problem, place=place, remedy="correct the file") from None


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str] | BadRow]]:
    csv.field_size_limit(2**31 - 1)  # the default refuses cells of more than 128 KiB
    reader = csv.reader((line + "\n" for _, line in _lines(path)), strict=True)
    while True:
        start = reader.line_num + 1  # a quoted cell may go over several lines
        try:
            yield start, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(
                error
            ):  # it swallowed all rows from here on: never just one row to skip
                remedy, place = (
                    'close the quote, or write a quote inside a cell as ""',
                    f"{shown(path)}:{start}",
                )
                raise DataError(
                    "a quoted cell that begins here never ends", place=place, remedy=remedy
                ) from None
            remedy = 'write a quote inside a cell as "", and quote the cell'
            yield start, BadRow(f"not CSV: {error}", path=path, line=start, remedy=remedy, row=None)


def _tsv_cells(path: Path) -> Iterator[tuple[int, list[str] | BadRow]]:
    for number, line in _lines(path):
        yield number, line.split("\t")  # quotes mean nothing here, as in all tsv corpora


def _table_rows(
    path: Path, records: Iterator[tuple[int, list[str] | BadRow]], header: bool
) -> Iterator[tuple[int, Row | BadRow]]:
    names: list[str] | None = None
    for number, cells in records:
        if isinstance(cells, BadRow):
            yield number, cells
        elif cells in ([], [""]):
            continue
        elif names is None and header:
            names = [cell.strip() for cell in cells]
            if twice := [name for name, count in Counter(names).items() if count > 1 and name]:
                problem, remedy = (
                    f"two columns are called {twice[0]!r}",
                    "give each column its own name",
                )
                raise DataError(problem, place=f"{shown(path)}:{number}", remedy=remedy)
        else:
            positions = [str(i) for i in range(len(cells))]
            if names is None and cells == positions:  # pandas' header of columns without names
                names = positions
                continue
            names = names or positions
            if len(cells) == len(names):
                yield number, dict(zip(names, cells, strict=True))
                continue
            remedy = (
                "quote cells that contain a comma"
                if format_of(path) == "csv"
                else "a cell cannot contain a tab"
            )
            problem = (
                f"{len(cells)} cell{'s' * (len(cells) != 1)} where the first line has {len(names)}"
            )
            yield number, BadRow(problem, path=path, line=number, remedy=remedy, row=cells)


def _conll_cells(line: str) -> list[str]:
    line = line.rstrip(" \t")  # not Unicode's blanks, which may be part of a word
    return line.split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]


def _conll_rows(path: Path, universal: bool) -> Iterator[tuple[int, Row | BadRow]]:
    """One row a sentence; the format of CoNLL-2000/2003, or CoNLL-U (universaldependencies.org/format.html)."""
    first = next(
        (
            line
            for _, line in _lines(path)
            if line.strip() and not line.startswith(("#", "-DOCSTART-"))
        ),
        "",
    )
    width, tabs = (10, True) if universal else (len(_conll_cells(first)), "\t" in first)
    token, tag = (1, 3) if universal else (0, -1)
    lines: list[int] = []
    table: list[list[str]] = []
    fault: BadRow | None = None
    for number, line in itertools.chain(
        _lines(path), [(0, "")]
    ):  # a last blank line ends the last sentence
        cells = _conll_cells(line)
        # '#' begins a comment, unless the line has a token's columns: '#' and '#tag' are words, too.
        comment = line.startswith("#") and (
            universal or len(cells) != width or (tabs and "\t" not in line)
        )
        if not line.strip() or line.startswith("-DOCSTART-"):
            if fault:
                yield lines[0], fault
            elif lines:
                columns = [list(column) for column in zip(*table, strict=True)]
                named = {str(i): column for i, column in enumerate(columns)}
                yield (
                    lines[0],
                    {
                        "tokens": columns[token],
                        "tags": columns[tag],
                        "text": " ".join(columns[token]),
                        **named,
                        "_lines": lines,
                    },
                )
            lines, table, fault = [], [], None
        elif comment or (
            universal and re.fullmatch(r"\d+[-.]\d+", cells[0])
        ):  # 1-2 a contraction, 1.1 an empty node
            continue
        else:
            lines.append(number)
            table.append(cells)
            if fault is None and (len(cells) != width or width < 2):
                problem = (
                    f"a single column, {cells[0]!r},"
                    if len(cells) == 1
                    else f"{len(cells)} columns"
                )
                expected = (
                    "a word and its tag are expected" if width < 2 else f"{width} are expected"
                )
                remedy = "each line has a word and its tag with a tab or a space between, an empty line ends a sentence"
                fault = BadRow(
                    f"{problem} where {expected}", path=path, line=number, remedy=remedy, row=line
                )


def _column_rows(path: Path, kind: str) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _open(path) as opened, tempfile.TemporaryFile() as unpacked:
        file: Any = opened
        if path.suffix.lower() in COMPRESSIONS:  # these formats are read from their end
            while block := opened.read(1 << 20):
                unpacked.write(block)
            file = unpacked
        file.seek(0)
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        try:
            if kind == "parquet":
                source = pq.ParquetFile(file)
                schema, batches = source.schema_arrow, source.iter_batches(batch_size=256)
            else:
                reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
                schema = reader.schema
                batches = (
                    (reader.get_batch(i) for i in range(reader.num_record_batches))
                    if is_file
                    else iter(reader)
                )
            classes = _class_names(schema.metadata or {})
            number = 0
            for batch in batches:
                for start in range(0, batch.num_rows, 256):
                    for row in batch.slice(start, 256).to_pylist():
                        number += 1
                        yield (
                            number,
                            {
                                name: _class_name(value, classes.get(name))
                                for name, value in row.items()
                            },
                        )
        except pa.ArrowException as error:
            problem = f"broken, or not {kind} data: {str(error).splitlines()[0]}"
            raise DataError(problem, place=shown(path), remedy="write it again") from error


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The names of datasets' ClassLabel columns, which hold numbers: they stand in the schema's metadata."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = {}
    for column, feature in features.items():
        inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            names[column] = inner["names"]
    return names


def _class_name(value: Any, names: list[str] | None) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_class_name(item, names) for item in value]
    return names[value] if 0 <= value < len(names) else None  # -1: no label
