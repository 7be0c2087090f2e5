"""Text: ``.txt``, a row a line, a paragraph or a file."""

from __future__ import annotations

import itertools
from pathlib import Path

from lmkit.data.formats.base import Format, Layout, NumberedRows, numbered_lines


def read_text(path: Path, layout: Layout) -> NumberedRows:
    """Stream the documents of a text file; blank ones are none."""
    if layout.document == "line":
        for number, line in numbered_lines(path):
            if line.strip():
                yield number, {"text": line}
        return
    is_file = layout.document == "file"
    lines: list[str] = []
    start = 1
    end = [(0, "")]  # a last blank line ends the last paragraph
    for number, line in itertools.chain(numbered_lines(path), end):
        if line.strip() or (is_file and number):
            start = start if lines else number
            lines.append(line)
        elif lines:
            text = "\n".join(lines)
            if text.strip():
                yield start, {"text": text}
            lines = []


TEXT = Format("text", (".txt", ".text"), read_text, is_text=True)
