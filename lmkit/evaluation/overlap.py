"""Rows that also stand in training: the same up to spelling of spaces and case, or nearly the same."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5  # letters
BINS, BAND = 48, 4  # of a sketch; and of them, how many have to agree for a pair to be looked at
NEAR = 0.8  # share of common shingles (Jaccard) from which two texts are near duplicates
MOST_LETTERS = (
    200_000_000  # of training text that is searched for near duplicates: a bound on the time
)
BLOCK_LETTERS, BLOCK_TEXTS = (
    250_000,
    50_000,
)  # sketched, and compared with training, at once: bounds on the memory
MOST_CANDIDATES, MOST_TRIES = (
    200,
    50,
)  # looked at for a training text by band; verified for it: bounds on the time
Sketches = NDArray[np.uint32]


@dataclass(frozen=True)
class Overlap:
    """What rows have in common with training.

    Args:
        exact: numbers of the rows whose text is in training.
        near: row -> (number of a training row that is nearly the same, share of their shingles in common).
        train_rows: how many training rows there are. searched: how many of them near duplicates were looked for in.
    """

    exact: list[int]
    near: dict[int, tuple[int, float]]
    train_rows: int
    searched: int


def find_overlap(texts: Iterable[str], training: Callable[[], Iterable[str]]) -> Overlap:
    """Compare every text with all training texts.

    Args:
        training: gives the texts from the beginning, each time it is called: once for every 50,000 texts.

    Exact duplicates are equal after ``normalised``. Near duplicates have at least 0.8 of their shingles of 5 letters in
    common, counted on letters and digits alone; candidates come from MinHash sketches (Broder 1997; one permutation,
    densified: Shrivastava and Li 2014) that agree in one of 12 bands, which finds a pair at 0.8 with probability 0.998 and
    all more similar ones more surely, and each candidate is verified on the shingles themselves. The time is
    proportional to the letters; of training, the first 200 million are searched for near duplicates.
    """
    found = Overlap([], {}, 0, 0)
    remaining, start = iter(texts), 0
    while (some := list(itertools.islice(remaining, BLOCK_TEXTS))) or not start:
        part = _find_overlap(some, training())
        exact = [*found.exact, *(start + row for row in part.exact)]
        found = Overlap(
            exact,
            found.near | {start + row: other for row, other in part.near.items()},
            part.train_rows,
            part.searched,
        )
        start += max(1, len(some))
    return found


def _find_overlap(texts: Sequence[str], training: Iterable[str]) -> Overlap:
    known: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        known.setdefault(normalised(text), []).append(number)
    letters = [only_letters(text) for text in texts]
    index = _Index(letters)
    exact: set[int] = set()
    near: dict[int, tuple[int, float]] = {}
    block: list[str] = []
    train_rows = searched = used = held = 0

    def search() -> None:
        for row, within, similarity in index.search(block):
            near[row] = (searched + within, similarity)

    for text in training:
        train_rows += 1
        exact.update(known.get(normalised(text), ()))
        if used < MOST_LETTERS:
            used += len(text)
            held += len(text)
            block.append(only_letters(text))
            if held > BLOCK_LETTERS:
                search()
                searched, held = searched + len(block), 0
                block = []
    search()
    return Overlap(
        sorted(exact),
        {row: near[row] for row in sorted(near.keys() - exact)},
        train_rows,
        searched + len(block),
    )


def normalised(text: str) -> str:
    """The text without differences that no reader sees: Unicode forms, case, runs of white space.

    >>> normalised(" Ｎew\\u00a0York\\n")
    'new york'
    """
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(plain.casefold().split())


def only_letters(text: str) -> str:
    """Letters and digits of the normalised text, a space for everything between them."""
    return re.sub(r"[\W_]+", " ", normalised(text)).strip()


class _Index:
    """Sketches of texts, to be searched for what resembles them."""

    def __init__(self, texts: Sequence[str]):
        self.texts = texts
        self.shingles: dict[int, frozenset[str]] = {}
        self.closed = np.zeros(len(texts), bool)  # a near duplicate is found
        self.sketches = np.concatenate(
            [sketches(block) for block in _blocks(texts)] or [sketches([])]
        )
        rows = np.flatnonzero([len(text) >= SHINGLE for text in texts])
        self.bands = []
        for keys in _band_keys(self.sketches[rows]).T:
            order = np.argsort(keys, kind="stable")
            self.bands.append((keys[order], rows[order]))

    def search(self, others: Sequence[str]) -> Iterable[tuple[int, int, float]]:
        """(row, number within ``others``, similarity) of near duplicates."""
        usable = np.flatnonzero([len(text) >= SHINGLE for text in others])
        if not len(usable) or not len(self.bands[0][0]):
            return
        theirs = sketches([others[number] for number in usable.tolist()])
        keys = _band_keys(theirs)
        first = np.stack(
            [np.searchsorted(mine, keys[:, band]) for band, (mine, _) in enumerate(self.bands)], 1
        )
        last = np.stack(
            [
                np.searchsorted(mine, keys[:, band], side="right")
                for band, (mine, _) in enumerate(self.bands)
            ],
            1,
        )
        for other in np.flatnonzero((last > first).any(1)).tolist():
            parts = []
            for band in np.flatnonzero(last[other] > first[other]).tolist():
                start, size = int(first[other, band]), int(last[other, band] - first[other, band])
                if (
                    size > MOST_CANDIDATES
                ):  # templates: each of many alike training texts looks at another part of them
                    start, size = (
                        start + other * MOST_CANDIDATES % (size - MOST_CANDIDATES + 1),
                        MOST_CANDIDATES,
                    )
                parts.append(self.bands[band][1][start : start + size])
            candidates = np.unique(np.concatenate(parts))
            candidates = candidates[~self.closed[candidates]]
            alike = (self.sketches[candidates] == theirs[other]).mean(1)
            best = np.argsort(-alike, kind="stable")[:MOST_TRIES]
            number = int(usable[other])
            # three standard deviations of the estimate below the threshold: what the sketches call unlike is not verified
            for row in candidates[best[alike[best] >= NEAR - 0.17]].tolist():
                mine, its = self._shingles(row), _shingles(others[number])
                similarity = len(mine & its) / len(mine | its)
                if similarity >= NEAR:
                    self.closed[row] = True
                    yield row, number, similarity

    def _shingles(self, row: int) -> frozenset[str]:
        if row not in self.shingles:
            self.shingles[row] = _shingles(self.texts[row])
        return self.shingles[row]


def _shingles(text: str) -> frozenset[str]:
    return frozenset(text[i : i + SHINGLE] for i in range(len(text) - SHINGLE + 1))


def _blocks(texts: Sequence[str]) -> Iterable[Sequence[str]]:
    start = held = 0
    for end, text in enumerate(texts, 1):
        held += len(text)
        if held > BLOCK_LETTERS or end == len(texts):
            yield texts[start:end]
            start, held = end, 0


def sketches(texts: Sequence[str]) -> Sketches:
    """One-permutation MinHash: ``(texts, 48)``; two texts agree in a bin with about the probability of their Jaccard similarity.

    Every shingle is hashed once; the hash's top decides its bin, the rest its value, and each bin keeps the smallest.
    An empty bin takes the value of the next full one, changed by the distance. Texts shorter than a shingle are all alike.
    """
    count = len(texts)
    sketch = np.full((count, BINS), 2**32 - 1, np.uint32)
    lengths = np.array([len(text) for text in texts], np.int64)
    letters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(
        np.uint64
    )
    if len(letters) >= SHINGLE:
        with np.errstate(over="ignore"):
            hashes = np.zeros(len(letters) - SHINGLE + 1, np.uint64)
            for position in range(SHINGLE):
                hashes = (
                    hashes * np.uint64(0x9E3779B97F4A7C15)
                    + letters[position : position + len(hashes)]
                    + np.uint64(1)
                )
            hashes ^= hashes >> np.uint64(31)  # the finalizer of splitmix64
            hashes *= np.uint64(0xBF58476D1CE4E5B9)
            hashes ^= hashes >> np.uint64(29)
            hashes *= np.uint64(0x94D049BB133111EB)
        owner = np.repeat(np.arange(count), lengths)
        inside = (
            owner[: len(hashes)] == owner[SHINGLE - 1 :]
        )  # a shingle does not begin in one text and end in the next
        hashes, owner = hashes[inside], owner[: len(inside)][inside]
        bins = ((hashes >> np.uint64(40)) % np.uint64(BINS)).astype(np.int64)
        np.minimum.at(
            sketch.reshape(-1),
            owner * BINS + bins,
            (hashes & np.uint64(0x7FFFFFFF)).astype(np.uint32),
        )
    empty = sketch == 2**32 - 1
    for _ in range(2):  # around the circle, so that the last bins borrow from the first
        for position in reversed(range(BINS)):
            following = (position + 1) % BINS
            borrow = empty[:, position] & (sketch[:, following] != 2**32 - 1)
            sketch[borrow, position] = (
                sketch[borrow, following] * np.uint32(2654435761) % np.uint32(2**32 - 1)
            )
            empty[:, position] &= ~borrow
    return sketch


def _band_keys(sketch: Sketches) -> NDArray[np.uint64]:
    """``(texts, bands)`` hashes of the bins of each band."""
    with np.errstate(over="ignore"):
        parts = sketch.reshape(len(sketch), BINS // BAND, BAND).astype(np.uint64)
        keys = np.zeros(parts.shape[:2], np.uint64)
        for position in range(BAND):
            keys = (keys ^ parts[:, :, position]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(32)
    return keys
