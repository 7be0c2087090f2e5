"""Entities in tags: if there are any, and where."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from lmkit.tasks.words import Offsets


def marks_entities(labels: Collection[str]) -> bool:
    """Tell if these tags mark entities: some have a type, or all are of ``B``, ``I``, ``O`` with a ``B``.

    >>> marks_entities(["O", "B-X", "I-X"]), marks_entities(["O", "B", "I"]), marks_entities(["B", "I", "N", "O"])
    (True, True, False)
    """
    if any(label.startswith(("B-", "I-")) for label in labels):
        return True
    return {"B"} < set(labels) <= {"B", "I", "O"}


def entities(
    text: str, offsets: Offsets, tags: Sequence[str], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """Read entities in characters off IOB2 tags; the score is the mean of their words'.

    >>> entities("in New York", [(0, 2), (3, 6), (7, 11)], ["O", "B-LOC", "I-LOC"], [1, 0.5, 1.0])
    [{'start': 3, 'end': 11, 'label': 'LOC', 'score': 0.75, 'text': 'New York'}]
    >>> [found["label"] for found in entities("Rome", [(0, 4)], ["B"], [1])]
    ['_']
    """
    from lmkit.metrics.tagging import type_of

    spans: list[tuple[str, list[int]]] = []
    previous = "O"
    for number, tag in enumerate(tags):
        if tag != "O":
            prefix, label = tag.partition("-")[0], type_of(tag)
            if prefix == "I" and previous != "O" and type_of(previous) == label:
                spans[-1][1].append(number)
            else:
                spans.append((label, [number]))
        previous = tag
    entities_found = []
    for label, words in spans:
        start, end = offsets[words[0]][0], offsets[words[-1]][1]
        score = sum(scores[word] for word in words) / len(words)
        entities_found.append(
            {"start": start, "end": end, "label": label, "score": score, "text": text[start:end]}
        )
    return entities_found
