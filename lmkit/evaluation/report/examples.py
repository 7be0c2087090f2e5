"""The rows of the report's table: what was read, what should have come out, what did, and the difference made visible."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Container, Sequence
from html import escape
from typing import Any

from lmkit.console import readable
from lmkit.records import Record
from lmkit.tasks.answers import Answer, Line, Part

MOST = 500  # rows in the page


def choose(
    records: Sequence[Record], answer: Answer, *, first: Container[Any] = ()
) -> tuple[int, list[Record]]:
    """Count the rows there are to look at, and choose the worst, at most ``MOST``, worst first.

    They are those that are wrong, or where that cannot be said all.

    Args:
        first: ids that are not left out for others.
    """
    bad = []
    for number, record in enumerate(records):
        if answer.is_wrong(record) is False:
            continue
        badness = answer.badness(record)
        rank = -math.inf if math.isnan(badness) else badness
        bad.append((record["id"] in first, rank, -number))
    kept = sorted(heapq.nlargest(MOST, bad), key=lambda entry: entry[1:], reverse=True)
    return len(bad), [records[-number] for *_, number in kept]


def row(
    record: Record, answer: Answer, marks: Sequence[str], hues: dict[str, int]
) -> tuple[str, list[str]]:
    """One row of the table as HTML, and the kinds it can be filtered by.

    Args:
        marks: what is suspicious of it.
        hues: colour of each type of entity.
    """
    display = answer.display(record)
    kinds = [*marks, *display.kinds]
    loss = record.loss
    shown = f"<b>row {escape(str(record['id']))}</b>" + (
        "" if math.isnan(loss) else f" · loss {readable(loss, 2)}"
    )
    about = [_line(line, hues) for line in display.about]
    tags = "".join(f'<span class="tag">{escape(name)}</span>' for name in kinds)
    head = "<br>".join(filter(None, [shown, *about, tags]))
    keys = escape(" ".join(name.replace(" ", "-") for name in kinds))
    said = "".join(_line(line, hues) for line in display.lines)
    markup = (
        f'<tr data-kinds="{keys}" data-pairs="{escape(json.dumps(display.pairs))}">'
        f'<td class="meta">{head}</td><td class="said">{said}</td></tr>'
    )
    return markup, kinds


def _line(line: Line, hues: dict[str, int]) -> str:
    who = f'<span class="who">{line.name}</span>' if line.name else ""
    return who + line.joint.join(_part(part, hues) for part in line.parts)


def _part(part: Part, hues: dict[str, int]) -> str:
    text, note = escape(part.text), f"<sub>{escape(part.note)}</sub>"
    if part.mark in ("entity", "wrong entity"):
        style = ' class="off"' if part.mark == "wrong entity" else ""
        return f'<mark{style} style="--h:{hues.get(part.note, 0)}">{text}{note}</mark>'
    before, after = {
        "gold": ('<span class="g">', "</span>"),
        "predicted": ('<span class="p">', "</span>"),
        "inserted": ("<ins>", "</ins>"),
        "deleted": ("<del>", "</del>"),
    }.get(part.mark, ("", ""))
    return f"{before}{text}{after}" + (f" {note}" if part.note else "")


def hues_of(names: Sequence[str]) -> dict[str, int]:
    """A colour for every type, far from its neighbours'."""
    return {name: round(i * 137.508) % 360 for i, name in enumerate(sorted(names))}


def kinds_in(rows: Sequence[tuple[str, list[str]]]) -> dict[str, int]:
    """The kinds that rows can be filtered by, with how many rows have each."""
    found: dict[str, Any] = {}
    for _, kinds in rows:
        for name in kinds:
            found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))
