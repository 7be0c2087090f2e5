"""The report's table of rows: those to look at, worst first, and what they can be filtered by."""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass

from lmkit.console import readable
from lmkit.evaluation.suspicions import Suspicions
from lmkit.records import Record
from lmkit.tasks.answers import Answer, Display

MOST = 500  # rows in the page


@dataclass(frozen=True)
class ShownRow:
    """A row of the table.

    Args:
        loss: as it is read; empty where there is none.
        kinds: by which it can be filtered.
    """

    id: int
    loss: str
    kinds: list[str]
    display: Display

    @property
    def keys(self) -> str:
        """Return the kinds as the page's script knows them."""
        return " ".join(kind.replace(" ", "-") for kind in self.kinds)

    @property
    def pairs(self) -> str:
        """Return gold and predicted labels for the page's script."""
        return json.dumps(self.display.pairs)


@dataclass(frozen=True)
class Rows:
    """The table.

    Args:
        left_out: how many more there would be to look at.
        kinds: how many of the shown rows have each kind, the most frequent first.
    """

    shown: list[ShownRow]
    left_out: int
    kinds: list[tuple[str, int]]


def rows_of(records: Sequence[Record], answer: Answer, suspicions: Suspicions) -> Rows:
    """Choose the rows to look at, and mark those that are suspicious."""
    doubtful = {doubt.id for doubt in suspicions.gold.rows}
    seen = set(suspicions.overlap.ids or ())
    count, chosen = choose(records, answer, first=doubtful)
    shown = []
    for record in chosen:
        display = answer.display(record)
        marks = ["doubtful gold"] if record["id"] in doubtful else []
        if record["id"] in seen:
            marks.append("seen in training")
        loss = "" if math.isnan(record.loss) else readable(record.loss, 2)
        shown.append(ShownRow(record["id"], loss, [*marks, *display.kinds], display))
    kinds = Counter(kind for row in shown for kind in row.kinds)
    return Rows(shown, count - len(shown), kinds.most_common())


def choose(
    records: Sequence[Record], answer: Answer, *, first: Container[int] = ()
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
    worst = sorted(heapq.nlargest(MOST, bad), key=lambda entry: entry[1:], reverse=True)
    return len(bad), [records[-number] for *_, number in worst]


def hues_of(names: Sequence[str]) -> dict[str, int]:
    """Choose a colour for every type, far from its neighbours'."""
    return {name: round(i * 137.508) % 360 for i, name in enumerate(sorted(names))}
