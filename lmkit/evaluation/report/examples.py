"""The rows of the report's table: what was read, what should have come out, what did, and the difference made visible."""

from __future__ import annotations

import difflib
import heapq
import json
import math
from collections.abc import Container, Sequence
from html import escape
from typing import Any

from lmkit.evaluation.mistakes import NOTHING, Span, matches_of
from lmkit.evaluation.records import Kind, Record, excerpt, is_wrong, loss_of, text_of
from lmkit.evaluation.report.plots import number
from lmkit.metrics.tagging import chunks

MOST = 500  # rows in the page
AROUND = 12  # words that stay on both sides of a wrong one


def chosen(
    records: Sequence[Record], kind: Kind, *, first: Container[Any] = ()
) -> tuple[int, list[Record]]:
    """How many rows there are to look at, and those with the highest loss, at most ``MOST``, worst first.

    They are those that are wrong, or where that cannot be said all.

    Args:
        first: ids that are not left out for others.
    """

    def badness(record: Record) -> float:
        loss = abs(record["prediction"] - record["gold"]) if kind == "number" else loss_of(record)
        return -math.inf if math.isnan(loss) else loss

    bad = [
        (record["id"] in first, badness(record), -number)
        for number, record in enumerate(records)
        if kind in ("number", "language") or is_wrong(record, kind)
    ]
    kept = sorted(heapq.nlargest(MOST, bad), key=lambda entry: entry[1:], reverse=True)
    return len(bad), [records[-number] for *_, number in kept]


def row(
    record: Record, kind: Kind, marks: Sequence[str], hues: dict[str, int]
) -> tuple[str, list[str]]:
    """One row of the table as HTML, and the kinds it can be filtered by.

    Args:
        marks: what is suspicious of it.
        hues: colour of each type of entity.
    """
    kinds, pairs, about, said = list(marks), [], "", ""
    if kind == "entities":
        matches = [match for match in matches_of(record) if match.kind != "correct"]
        kinds += sorted({match.kind for match in matches})
        pairs = [
            [m.gold[2] if m.gold else NOTHING, m.predicted[2] if m.predicted else NOTHING]
            for m in matches
        ]
        wrong = {span for match in matches for span in (match.gold, match.predicted) if span}
        said = _who("gold", _entities(record, "gold", wrong, hues)) + _who(
            "predicted", _entities(record, "prediction", wrong, hues)
        )
    elif kind == "tags":
        said = _tags(record)
        pairs = [
            [gold, tag]
            for gold, tag in zip(record["gold"], record["prediction"], strict=True)
            if gold != tag
        ]
    elif kind == "label":
        pairs = [[record["gold"], record["prediction"]]]
        about = f'<span class="g">{escape(record["gold"])}</span> taken for <span class="p">{escape(record["prediction"])}</span>'
        about += f" ({number(record.get('score'), 2)})"
        said = escape(excerpt(text_of(record)))
    elif kind == "labels":
        gold, predicted = set(record["gold"]), set(record["prediction"])
        parts = [f'<span class="p">+ {escape(name)}</span>' for name in sorted(predicted - gold)]
        parts += [f'<span class="g">− {escape(name)}</span>' for name in sorted(gold - predicted)]
        about, said = (
            "<br>".join(parts + [escape(name) for name in sorted(gold & predicted)]),
            escape(excerpt(text_of(record))),
        )
    elif kind == "number":
        about = f"gold {number(record['gold'])}, predicted {number(record['prediction'])}"
        said = escape(excerpt(text_of(record)))
    elif kind == "translation":
        reference, output = differences(excerpt(record["gold"]), excerpt(record["prediction"]))
        said = (
            _who("source", escape(excerpt(record["source"])))
            + _who("reference", reference)
            + _who("output", output)
        )
    else:
        said = escape(excerpt(text_of(record), 400))
    loss = loss_of(record)
    shown = f"<b>row {escape(str(record['id']))}</b>" + (
        "" if math.isnan(loss) else f" · loss {number(loss, 2)}"
    )
    tags = "".join(f'<span class="tag">{escape(name)}</span>' for name in kinds)
    head = "<br>".join(filter(None, [shown, about, tags]))
    keys = escape(" ".join(name.replace(" ", "-") for name in kinds))
    markup = (
        f'<tr data-kinds="{keys}" data-pairs="{escape(json.dumps(pairs))}">'
        f'<td class="meta">{head}</td><td class="said">{said}</td></tr>'
    )
    return markup, kinds


def _who(name: str, content: str) -> str:
    return f'<span class="who">{name}</span>{content}'


def _entities(record: Record, side: str, wrong: set[Span], hues: dict[str, int]) -> str:
    """The sentence with the entities of one side marked, the wrong ones outlined; far from any, words are left out."""
    words, spans = record["tokens"], sorted(chunks(record[side]))
    near = {word for start, end, _ in wrong for word in range(start - AROUND, end + AROUND)}
    begins = {start: (end, name) for start, end, name in spans}
    parts: list[str] = []
    position, gap = 0, False
    while position < len(words):
        end, name = begins.get(position, (position + 1, ""))
        if position in near or end - 1 in near:
            text = escape(excerpt(" ".join(words[position:end]), 200))
            if name:
                style = ' class="off"' if (position, end, name) in wrong else ""
                text = f'<mark{style} style="--h:{hues.get(name, 0)}">{text}<sub>{escape(name)}</sub></mark>'
            parts.append(text)
            gap = False
        elif not gap:
            parts.append("…")
            gap = True
        position = end
    return " ".join(parts)


def _tags(record: Record) -> str:
    triples = list(zip(record["tokens"], record["gold"], record["prediction"], strict=True))
    near = {
        n + d
        for n, (_, gold, tag) in enumerate(triples)
        if gold != tag
        for d in range(-AROUND, AROUND + 1)
    }
    parts: list[str] = []
    for position, (word, gold, tag) in enumerate(triples):
        if position not in near:
            parts += ["…"] if not parts or parts[-1] != "…" else []
        elif gold == tag:
            parts.append(escape(word))
        else:
            parts.append(f"<del>{escape(word)}</del> <sub>{escape(gold)} → {escape(tag)}</sub>")
    return " ".join(parts)


def differences(reference: str, output: str) -> tuple[str, str]:
    """Both texts as HTML with the words that only one of them has marked.

    >>> differences("a <b> c", "a c d")
    ('a <ins>&lt;b&gt;</ins> c', 'a c <del>d</del>')
    """
    left, right = reference.split(), output.split()
    if len(left) < 2 and len(right) < 2:  # a script without spaces
        left, right = list(reference), list(output)
    space = "" if left == list(reference) else " "
    parts: tuple[list[str], list[str]] = ([], [])
    for what, a, b, c, d in difflib.SequenceMatcher(
        None, left, right, autojunk=False
    ).get_opcodes():
        for side, words, mark in ((parts[0], left[a:b], "ins"), (parts[1], right[c:d], "del")):
            text = escape(space.join(words))
            if text:
                side.append(text if what == "equal" else f"<{mark}>{text}</{mark}>")
    return space.join(parts[0]), space.join(parts[1])


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
