"""What is taken for what: confusion of labels, and the kinds of errors that a tagger makes with entities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lmkit.evaluation.records import Kind, Record
from lmkit.metrics.tagging import chunks

Span = tuple[int, int, str]  # start, end (exclusive) in words, type
NOTHING = "(none)"  # on either side of the confusion of entities: missed, spurious
ERROR_KINDS = ("boundary", "type", "both", "missed", "spurious")


class Match(NamedTuple):
    """An entity of the gold beside one of the prediction; one of them may be absent."""

    kind: str
    gold: Span | None
    predicted: Span | None


def match_entities(gold: Iterable[Span], predicted: Iterable[Span]) -> list[Match]:
    """Every entity of one sentence in exactly one match.

    Kinds, as in Nejadgholi et al. 2020 (after MUC-5, Chinchor and Sundheim 1993): ``correct``; ``type``: the same words
    with another type; ``boundary``: words in common, the same type; ``both``: words in common, another type;
    ``missed``: nothing predicted there; ``spurious``: nothing there in the gold. Each entity is matched once, with its best
    partner first: the same words, then the same type, then the most words in common, then the leftmost.

    >>> [match.kind for match in match_entities([(0, 2, "PER"), (4, 5, "LOC")], [(0, 1, "PER"), (6, 7, "LOC")])]
    ['boundary', 'missed', 'spurious']
    """
    left, right = set(gold), set(predicted)
    pairs = []
    for mine in left:
        for other in right:
            common = min(mine[1], other[1]) - max(mine[0], other[0])
            if common > 0:
                same_words, same_type = mine[:2] == other[:2], mine[2] == other[2]
                kind = {
                    (True, True): "correct",
                    (True, False): "type",
                    (False, True): "boundary",
                }.get((same_words, same_type), "both")
                pairs.append((not same_words, not same_type, -common, mine, other, kind))
    found = []
    for _, _, _, mine, other, kind in sorted(pairs):
        if mine in left and other in right:
            left.remove(mine)
            right.remove(other)
            found.append(Match(kind, mine, other))
    found += [Match("missed", mine, None) for mine in left] + [
        Match("spurious", None, other) for other in right
    ]
    return sorted(found, key=lambda match: match.gold or match.predicted or (0, 0, ""))


def matches_of(record: Record) -> list[Match]:
    return match_entities(chunks(record["gold"]), chunks(record["prediction"]))


def entity_errors(records: Sequence[Record]) -> dict[str, Any]:
    """How many entities are matched how, in all and by type (of the gold; spurious ones by the predicted type)."""
    total: Counter[str] = Counter()
    by_type: dict[str, Counter[str]] = {}
    for record in records:
        for match in matches_of(record):
            owner = match.gold or match.predicted
            assert owner is not None
            total[match.kind] += 1
            by_type.setdefault(owner[2], Counter())[match.kind] += 1
    kinds = ("correct", *ERROR_KINDS)

    def counted(counts: Mapping[str, int]) -> dict[str, int]:
        return {kind: counts.get(kind, 0) for kind in kinds}

    return counted(total) | {"by_type": {name: counted(by_type[name]) for name in sorted(by_type)}}


def confusion(
    records: Sequence[Record], kind: Kind, labels: Sequence[str]
) -> dict[str, Any] | None:
    """Counts by gold label (rows) and predicted label (columns); None where labels are not exclusive.

    Of entities the types, matched as in ``match_entities``, with ``(none)`` for missed and spurious ones; of other
    tags the words.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    if kind == "label":
        pairs.update((record["gold"], record["prediction"]) for record in records)
    elif kind == "tags":
        for record in records:
            pairs.update(zip(record["gold"], record["prediction"], strict=True))
    elif kind == "entities":
        for record in records:
            pairs.update(
                (
                    match.gold[2] if match.gold else NOTHING,
                    match.predicted[2] if match.predicted else NOTHING,
                )
                for match in matches_of(record)
            )
    else:
        return None
    found = {name for pair in pairs for name in pair}
    names = (
        [name for name in labels if name in found or kind == "label"] if kind != "entities" else []
    )
    names += sorted(found - set(names) - {NOTHING})
    if kind == "entities":
        names.append(NOTHING)
    return {
        "labels": names,
        "counts": [[pairs[gold, predicted] for predicted in names] for gold in names],
    }
