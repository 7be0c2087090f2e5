"""A format of data files, and what all formats share: opening a file, and its lines."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmkit.data.row import Row, short_path
from lmkit.errors import DataError

Document = Literal["line", "paragraph", "file"]
COMPRESSIONS = (".gz", ".zst")
UNREADABLE = (OSError, EOFError, zlib.error)
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
        place = f"{short_path(path)}:{line}"
        super().__init__(
            problem, place=place, remedy=f"{remedy}; or leave the row out: data.on_bad_row=skip"
        )


NumberedRows = Iterator[tuple[int, Row | BadRow]]


@dataclass(frozen=True)
class Layout:
    """What a file's name does not tell about its rows.

    Args:
        document: what is one row of a text file: a line that is not blank, a paragraph, or the file.
        header: whether the first line of csv and tsv names the columns; else they are ``"0"``, ``"1"``, ...
    """

    document: Document = "line"
    header: bool = True


@dataclass(frozen=True)
class Format:
    """One format of data files.

    Args:
        endings: of the names of its files, compression aside.
        read: streams the rows, each with its number, counted from 1.
        is_table: columns may go by their position, where no header names them.
        is_text: a row has a text alone.
    """

    name: str
    endings: tuple[str, ...]
    read: Callable[[Path, Layout], NumberedRows]
    is_table: bool = False
    is_text: bool = False


def open_file(path: Path) -> io.BufferedIOBase:
    """Open a file for reading bytes, unpacked."""
    if path.suffix.lower() in COMPRESSIONS:
        return _open_packed(path)
    return path.open("rb")


def _open_packed(path: Path) -> io.BufferedIOBase:
    if path.suffix.lower() == ".gz":
        import gzip

        return gzip.open(path, "rb")
    import pyarrow  # its reader notices a truncated file; zstandard's does not

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Read the lines of a UTF-8 file without their ends: only \n and \r\n end one, never U+2028 or U+0085."""
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                _check_start(line, path)
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode()
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, line, error.start) from None


def _not_utf8(path: Path, number: int, line: bytes, start: int) -> DataError:
    problem = f"not UTF-8: byte 0x{line[start]:02x} at byte {start + 1} of the line"
    remedy = f"save the file as UTF-8, for example: iconv -f latin1 -t utf-8 {path.name} > new-{path.name}"
    return DataError(problem, place=f"{short_path(path)}:{number}", remedy=remedy)


def _check_start(start: bytes, path: Path) -> None:
    if start.startswith(tuple(MAGIC)) or b"\0" in start[:4]:
        raise _no_text(start, path)


def _no_text(start: bytes, path: Path) -> DataError:
    """Describe a file by the bytes with which it begins."""
    kinds = [kind for magic, kind in MAGIC.items() if start.startswith(magic)]
    if not kinds:
        kinds = ["NUL bytes: UTF-16 text, or no text at all"]
    remedy = "rename it, or export it as UTF-8 text"
    if "UTF-16" in kinds[0]:
        remedy = "save the file as UTF-8, for example: iconv -f utf-16 -t utf-8"
    problem = f"not UTF-8 text: the file begins with {kinds[0]}"
    return DataError(problem, place=f"{short_path(path)}:1", remedy=remedy)


def unreadable(path: Path, error: Exception) -> DataError:
    """Describe a file that cannot be read to its end."""
    remedy = "the file is broken, incomplete or not readable: fetch or write it again"
    return DataError(f"cannot be read: {error}", place=short_path(path), remedy=remedy)
