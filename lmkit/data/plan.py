"""Plan which rows make each optimizer step, on which rank, in which micro-batch.

The first is decided from (seed, epoch, number of examples) alone, with ``train.group_by_length`` from their lengths too, so what
a step learns from never depends on the hardware. The second and third only deal the step's examples out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

Index = np.ndarray  # (n,) int64 example numbers
POOL = 50  # batches that are put together by length, as many as transformers' group_by_length sorts
NARROWEST = 64  # tokens of a shared row: wider ones hold more texts and less padding, but attention is over the whole row
PASS = (
    1 / 8
)  # of a full micro-batch: what a pass costs beside its tokens, in casts of weights, sums of gradients and calls
WORTH = 0.05  # of a batch has to be padding before its tokens are moved


@dataclass(frozen=True)
class Plan:
    """The order of a whole run, computed anywhere in it at the same cost.

    Args:
        num_examples: of the training split.
        batch_size: examples per optimizer step, over all devices.
        seed: of the order.
        lengths: ``(num_examples, sides)`` tokens, where examples of alike length shall make a step (``train.group_by_length``);
            sides are padded apart, such as source and target.
    """

    num_examples: int
    batch_size: int
    seed: int
    lengths: np.ndarray | None = field(default=None, compare=False)

    @property
    def steps_per_epoch(self) -> int:
        """Count the steps; the last takes what is left, so every example of every epoch contributes once."""
        return math.ceil(self.num_examples / self.batch_size)

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, step within the epoch) of a step counted from 0."""
        return divmod(step, self.steps_per_epoch)

    def order(self, epoch: int) -> Index:
        """Return the examples of an epoch in its order, keyed on (seed, epoch)."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch])))
        order = rng.permutation(self.num_examples)
        return (
            order if self.lengths is None else _grouped(order, self.lengths, self.batch_size, rng)
        )

    def examples(self, step: int, order: Index | None = None) -> Index:
        """Return the examples of a step counted from 0; ``order`` saves making the epoch's order again."""
        epoch, within = self.position(step)
        order = self.order(epoch) if order is None else order
        return order[within * self.batch_size : (within + 1) * self.batch_size]


def _grouped(order: Index, lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> Index:
    """Return batches of alike length, made of ``POOL`` batches at a time, in random order; what is left comes last."""
    whole = len(order) // batch_size * batch_size
    pools = np.split(order[:whole], range(POOL * batch_size, whole, POOL * batch_size))
    batches = np.concatenate([_alike(pool, lengths, batch_size) for pool in pools]).reshape(
        -1, batch_size
    )
    return np.concatenate([rng.permutation(batches).reshape(-1), order[whole:]])


def _alike(examples: Index, lengths: np.ndarray, batch_size: int) -> Index:
    """Order the examples of whole batches, halved across the side that differs most until a batch is left (Bentley's k-d tree, 1975).

    With one side this is sorting. With two, each is padded less than where their sum is sorted.
    """
    batches = len(examples) // batch_size
    if batches <= 1:
        return examples
    sides = lengths[examples]
    ordered = examples[np.argsort(sides[:, np.ptp(sides, axis=0).argmax()], kind="stable")]
    middle = batches // 2 * batch_size
    return np.concatenate(
        [_alike(half, lengths, batch_size) for half in (ordered[:middle], ordered[middle:])]
    )


def deal(examples: Index, lengths: np.ndarray, ranks: int) -> list[Index]:
    """Deal a step's examples to ranks so that their tokens are about equal: longest first, to the least loaded.

    >>> [part.tolist() for part in deal(np.array([0, 1, 2]), np.array([5, 3, 2]), 2)]
    [[0], [1, 2]]
    """
    if ranks == 1:
        return [examples]
    return _deal_evenly(examples, lengths, ranks)


def _deal_evenly(examples: Index, lengths: np.ndarray, ranks: int) -> list[Index]:
    loads, parts = [0] * ranks, [[] for _ in range(ranks)]  # type: list[int], list[list[int]]
    for example in sorted(examples.tolist(), key=lambda i: (-int(lengths[i]), i)):
        rank = loads.index(min(loads))
        parts[rank].append(example)
        loads[rank] += int(lengths[example])
    return [np.array(part, dtype=np.int64) for part in parts]


def micro_batches(
    examples: Index, lengths: np.ndarray, budget: int, *, padded: bool = False
) -> list[Index]:
    """Cut into micro-batches of at most ``budget`` tokens, padding included; alike lengths together.

    An example longer than the budget makes a micro-batch of its own.

    Args:
        padded: padding is computed as tokens are, so that more micro-batches with less of it may cost less: the cut of least
            cost. A pass costs its places and, however small it is, a share of a full one (``PASS``). Else as few as there can be.

    >>> [part.tolist() for part in micro_batches(np.array([0, 1, 2]), np.array([9, 2, 3]), 10)]
    [[1, 2], [0]]
    """
    order = np.array(sorted(examples.tolist(), key=lambda i: (int(lengths[i]), i)), dtype=np.int64)
    sizes = lengths[order].tolist()
    if padded:
        return _cheapest_cut(order, sizes, budget)
    # sorted upwards, so the last example of a micro-batch is its longest
    starts: list[int] = []
    for at, size in enumerate(sizes):
        if not starts or (at + 1 - starts[-1]) * size > budget:
            starts.append(at)
    return np.split(order, starts[1:]) if starts else []


def _cheapest_cut(order: Index, sizes: list[int], budget: int) -> list[Index]:
    """Cut examples that are sorted by size where the cost of all passes is least."""
    costs = np.zeros(len(sizes) + 1)  # of the first 0, 1, 2, ... examples
    before = [0]  # where the last micro-batch of their cut begins
    for end, size in enumerate(sizes, 1):
        first = max(0, end - max(1, budget // max(size, 1)))
        totals = costs[first:end] + size * np.arange(end - first, 0, -1)
        best = int(totals.argmin())
        costs[end] = totals[best] + budget * PASS
        before.append(first + best)
    cuts = [len(sizes)]
    while cuts[-1] > 0:
        cuts.append(before[cuts[-1]])
    return [order[start:end] for end, start in pairwise(cuts)][::-1]


class Groups(Sequence[list[int]]):
    """Which pieces make each example: numbers in two arrays, about 16 bytes a piece, however many there are.

    Args:
        pieces: ``(pieces,)`` the numbers, group after group. sizes: ``(groups,)`` how many each group has, at least one.

    >>> groups = Groups(np.array([0, 3, 1, 2]), np.array([2, 2]))
    >>> list(groups), groups.sums(np.array([4, 2, 3, 1])).tolist(), groups.largest(np.array([4, 2, 3, 1])).tolist()
    ([[0, 3], [1, 2]], [5, 5], [4, 3])
    """

    def __init__(self, pieces: Index, sizes: Index):
        self.pieces, self.sizes = pieces, sizes
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        end = int(self._ends[number])
        return self.pieces[end - int(self.sizes[number]) : end].tolist()

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum the pieces' values by group."""
        return np.add.reduceat(values[self.pieces], self._ends - self.sizes)

    def largest(self, values: np.ndarray) -> np.ndarray:
        """Return the largest of the pieces' values by group."""
        return np.maximum.reduceat(values[self.pieces], self._ends - self.sizes)


def by_row(owners: np.ndarray) -> Groups:
    """Group the pieces of each row, which follow one another.

    >>> list(by_row(np.array([0, 0, 1])))
    [[0, 1], [2]]
    """
    ends = np.flatnonzero(np.diff(owners, append=-1)) + 1
    return Groups(np.arange(len(owners)), np.diff(ends, prepend=0))


def fill(lengths: Sequence[int] | np.ndarray, size: int) -> Groups:
    """Group pieces so that each group has at most ``size`` tokens: first fit, longest pieces first.

    Args:
        lengths: tokens per piece, each at most ``size``.

    Returns:
        Groups of piece numbers, each group in the order of the data; deterministic.

    >>> list(fill([4, 2, 3, 1], 5))
    [[0, 3], [1, 2]]
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    owners, below = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    # Views give and take plain numbers: a list of as many would take five times the memory.
    length_of, owner_of, under = lengths.data, owners.data, below.data
    top = [-1] * (
        size + 1
    )  # of the pile of groups with so much room; the pile goes on in ``below``
    rooms = 0  # a bit for every room that some group has
    count = 0
    for piece in np.argsort(-lengths, kind="stable").data:
        length = length_of[piece]
        fitting = rooms >> length
        if fitting:  # the least room that is enough
            room = length + (fitting & -fitting).bit_length() - 1
            group = top[room]
            top[room] = under[group]
            if top[room] < 0:
                rooms ^= 1 << room
        else:
            room, group, count = size, count, count + 1
        owner_of[piece] = group
        room -= length
        under[group], top[room] = top[room], group
        rooms |= 1 << room
    first = np.full(count, len(lengths))
    np.minimum.at(first, owners, np.arange(len(lengths)))
    rank = np.empty(count, np.int64)
    rank[np.argsort(first)] = np.arange(count)
    owners = rank[owners]
    return Groups(np.argsort(owners, kind="stable"), np.bincount(owners, minlength=count))


def rows_to_share(lengths: Sequence[int]) -> np.ndarray | None:
    """Lay out the tokens of a padded batch in rows that texts share: places in the flattened batch, -1 for padding.

    Args:
        lengths: tokens of each text of the batch, which is padded at the end.

    Returns:
        ``(rows, width)``, or None where too little padding would be saved.

    >>> rows_to_share([64, 2, 3])[:, :6].tolist()
    [[0, 1, 2, 3, 4, 5], [64, 65, 128, 129, 130, -1]]
    """
    longest = max(lengths)
    groups = fill(lengths, max(longest, NARROWEST))
    rows = [
        np.concatenate([text * longest + np.arange(lengths[text]) for text in group])
        for group in groups
    ]
    places = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for place, row in zip(places, rows, strict=True):
        place[: len(row)] = row
    return places if places.size <= (1 - WORTH) * len(lengths) * longest else None
