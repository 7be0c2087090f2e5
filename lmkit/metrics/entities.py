"""Entities of one sentence side by side: which of the gold is which of the prediction, and how they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lmkit.metrics.tagging import chunks
from lmkit.records import Stored, jsonable

Span = tuple[int, int, str]  # start, end (exclusive) in words, type
NOTHING = "(none)"  # on either side of the confusion of entities: missed, spurious
ERROR_KINDS = ("boundary", "type", "both", "missed", "spurious")


class Match(NamedTuple):
    """An entity of the gold beside one of the prediction; one of them may be absent."""

    kind: str
    gold: Span | None
    predicted: Span | None

    @property
    def types(self) -> tuple[str, str]:
        """Return the types of both, ``(none)`` for the absent one."""
        return (
            self.gold[2] if self.gold else NOTHING,
            self.predicted[2] if self.predicted else NOTHING,
        )


def match_entities(gold: Iterable[Span], predicted: Iterable[Span]) -> list[Match]:
    """Put every entity of one sentence in exactly one match.

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
        for theirs in right:
            common = min(mine[1], theirs[1]) - max(mine[0], theirs[0])
            if common > 0:
                same_words, same_type = mine[:2] == theirs[:2], mine[2] == theirs[2]
                kind = _kind_of_match(same_words, same_type)
                pairs.append((not same_words, not same_type, -common, mine, theirs, kind))
    matches = []
    for _, _, _, mine, theirs, kind in sorted(pairs):
        if mine in left and theirs in right:
            left.remove(mine)
            right.remove(theirs)
            matches.append(Match(kind, mine, theirs))
    matches += [Match("missed", mine, None) for mine in left]
    matches += [Match("spurious", None, theirs) for theirs in right]
    return sorted(matches, key=lambda match: match.gold or match.predicted or (0, 0, ""))


def _kind_of_match(same_words: bool, same_type: bool) -> str:
    if same_words:
        return "correct" if same_type else "type"
    return "boundary" if same_type else "both"


def match_tags(gold: Sequence[str], predicted: Sequence[str]) -> list[Match]:
    """Match the entities that two sequences of IOB2 tags mark."""
    return match_entities(chunks(gold), chunks(predicted))


@dataclass(frozen=True)
class ErrorCounts(Stored):
    """How many entities are matched how, in all and by type (of the gold; spurious ones by the predicted type)."""

    total: Mapping[str, int]
    by_type: Mapping[str, Mapping[str, int]]

    def to_json(self) -> dict[str, Any]:
        return {**self.total, "by_type": jsonable(self.by_type)}


def count_matches(matches: Iterable[Match]) -> ErrorCounts:
    """Count the kinds of matches."""
    total: Counter[str] = Counter()
    by_type: dict[str, Counter[str]] = {}
    for match in matches:
        owner = match.gold or match.predicted
        assert owner is not None
        total[match.kind] += 1
        by_type.setdefault(owner[2], Counter())[match.kind] += 1
    return ErrorCounts(_counts(total), {name: _counts(by_type[name]) for name in sorted(by_type)})


def _counts(kinds: Mapping[str, int]) -> dict[str, int]:
    return {kind: kinds.get(kind, 0) for kind in ("correct", *ERROR_KINDS)}
