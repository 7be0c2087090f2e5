"""Entities given in characters (spaCy, doccano, Label Studio, Prodigy) -> words with IOB2 tags."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lmkit.tasks.words import Offsets, split_words

Span = tuple[int, int, str]  # start, end (exclusive), label
SPLIT = "punctuation"  # how texts with entities in characters are cut into words, see words.word_pattern
STARTS, ENDS = ("start", "start_offset"), ("end", "end_offset")
LABELS = ("label", "type", "tag", "entity_group")


def words_with_tags(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of ``text`` and ``entities`` with ``tokens``, their ``offsets`` in the text, and IOB2 ``tags``.

    The text is cut into words as ``lmkit predict`` cuts raw text. Where an entity begins or ends within a word, the word
    is cut there too, so every entity is exact. That border is known from the gold alone: ``lmkit predict`` can find
    such an entity ("York" in "York-based") only together with the rest of its word.

    Raises:
        ValueError: an entity that cannot stand, see ``spans_of``.

    >>> row = words_with_tags({"text": "in New York-based", "entities": [{"start": 3, "end": 11, "label": "LOC"}]})
    >>> list(zip(row["tokens"], row["tags"]))
    [('in', 'O'), ('New', 'B-LOC'), ('York', 'I-LOC'), ('-based', 'O')]
    """
    text: str = row["text"]
    spans = spans_of(row.get("entities", []), text)
    borders = {border for start, end, _ in spans for border in (start, end)}
    offsets: Offsets = []
    for start, end in split_words(text, SPLIT):
        offsets += pairwise([start, *sorted(borders.intersection(range(start + 1, end))), end])
    tags, waiting = [], list(reversed(spans))
    for start, _ in offsets:
        while waiting and waiting[-1][1] <= start:
            waiting.pop()
        inside = bool(waiting) and waiting[-1][0] <= start
        tags.append(
            f"{'B' if waiting[-1][0] == start else 'I'}-{waiting[-1][2]}" if inside else "O"
        )
    return {
        "tokens": [text[start:end] for start, end in offsets],
        "tags": tags,
        "text": text,
        "offsets": offsets,
    }


def spans_of(entities: list[Any], text: str) -> list[Span]:
    """Return checked spans in the order of the text; blanks at their ends are trimmed.

    Args:
        entities: objects with ``start``, ``end`` and ``label`` (or ``type``, ``tag``, ``entity_group``), or
            ``[start, end, label]``; in characters, the end exclusive.

    Raises:
        ValueError: no such object or list, outside the text, empty, blank, overlapping another; or it has a ``text`` of
            its own that does not stand there (offsets counted in bytes or in UTF-16).

    >>> spans_of([{"start": 2, "end": 6, "type": "LOC"}, [0, 2, "X"]], "a Rome")
    [(0, 1, 'X'), (2, 6, 'LOC')]
    """
    spans = sorted(
        _span(entity, text, f"entity {number}") for number, entity in enumerate(entities, 1)
    )
    for (start, end, label), (other_start, other_end, other_label) in pairwise(spans):
        if other_start < end:
            one, other = (
                f"{text[start:end]!r} ({label})",
                f"{text[other_start:other_end]!r} ({other_label})",
            )
            raise ValueError(f"the entities {one} and {other} overlap; a word has one tag")
    return spans


def _span(entity: Any, text: str, name: str) -> Span:
    own_text = None
    if isinstance(entity, Mapping):
        values = [
            next((entity[key] for key in keys if key in entity), None)
            for keys in (STARTS, ENDS, LABELS)
        ]
        own_text = entity.get("text")
    elif isinstance(entity, (list, tuple)) and len(entity) == 3:
        values = list(entity)
    else:
        hint = (
            "; labels of a whole text are task: classification"
            if isinstance(entity, (str, int))
            else ""
        )
        raise ValueError(
            f"{name} is neither an object with start, end and label nor a list of the three: {str(entity)[:60]}{hint}"
        )
    start, end, label = values
    if type(start) is not int or type(end) is not int:
        raise ValueError(
            f"{name}: its start and end are to be whole numbers, found {start!r} and {end!r}"
        )
    if type(label) is int:
        label = str(label)
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{name}: its label is to be a name, found {label!r}")
    if not 0 <= start <= end <= len(text):
        raise ValueError(
            f"{name}: {start} to {end} is not within the text, which has {len(text)} characters"
        )
    inner = text[start:end]
    if not inner.strip():
        raise ValueError(f"{name}: {start} to {end} is {'blank' if inner else 'empty'}")
    if isinstance(own_text, str) and own_text.strip() != inner.strip():
        remedy = "offsets count characters (Unicode code points), neither bytes nor UTF-16 units"
        raise ValueError(
            f"{name}: {start} to {end} is {inner!r}, but the entity says {own_text!r}; {remedy}"
        )
    start += len(inner) - len(inner.lstrip())
    return start, start + len(inner.strip()), label.strip()
