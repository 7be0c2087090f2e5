"""Rows that also stand in training: the same up to spelling of spaces and case, or nearly the same."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5  # letters
BINS, BAND = 48, 4  # of a sketch; and of them, how many have to agree for a pair to be looked at
NEAR = 0.8  # share of common shingles (Jaccard) from which two texts are near duplicates
# bounds on the time: letters of training text that is searched for near duplicates; texts that are looked at for a
# training text by band, and that are verified for it
MOST_LETTERS = 200_000_000
MOST_CANDIDATES, MOST_TRIES = 200, 50
# bounds on the memory: what is sketched, and compared with training, at once
BLOCK_LETTERS, BLOCK_TEXTS = 250_000, 50_000
Sketches = NDArray[np.uint32]
Places = NDArray[np.intp]


@dataclass(frozen=True)
class Twins:
    """Rows that have a twin in training.

    Args:
        exact: numbers of the rows whose text is in training.
        near: row -> (number of a training row that is nearly the same, share of their shingles in common).
        train_rows: how many training rows there are. searched: how many of them near duplicates were looked for in.
    """

    exact: list[int]
    near: dict[int, tuple[int, float]]
    train_rows: int
    searched: int


def find_overlap(texts: Iterable[str], training: Callable[[], Iterable[str]]) -> Twins:
    """Compare every text with all training texts.

    Args:
        training: gives the texts from the beginning, each time it is called: once for every 50,000 texts.

    Exact duplicates are equal after ``normalised``. Near duplicates have at least 0.8 of their shingles of 5 letters in
    common, counted on letters and digits alone; candidates come from MinHash sketches (Broder 1997; one permutation,
    densified: Shrivastava and Li 2014) that agree in one of 12 bands, which finds a pair at 0.8 with probability 0.998 and
    all more similar ones more surely, and each candidate is verified on the shingles themselves. The time is
    proportional to the letters; of training, the first 200 million are searched for near duplicates.
    """
    twins = Twins([], {}, 0, 0)
    remaining, start = iter(texts), 0
    while (block := list(itertools.islice(remaining, BLOCK_TEXTS))) or not start:
        part = _find_in_block(block, training())
        exact = [start + row for row in part.exact]
        near = {start + row: twin for row, twin in part.near.items()}
        twins = Twins([*twins.exact, *exact], twins.near | near, part.train_rows, part.searched)
        start += max(1, len(block))
    return twins


def _find_in_block(texts: Sequence[str], training: Iterable[str]) -> Twins:
    rows_of: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        rows_of.setdefault(normalised(text), []).append(row)
    index = _Index([only_letters(text) for text in texts])
    exact: set[int] = set()
    near: dict[int, tuple[int, float]] = {}
    block: list[str] = []
    train_rows = searched = used = held = 0
    for text in training:
        train_rows += 1
        exact.update(rows_of.get(normalised(text), ()))
        if used >= MOST_LETTERS:
            continue
        used += len(text)
        held += len(text)
        block.append(only_letters(text))
        if held > BLOCK_LETTERS:
            near |= index.find_near(block, first=searched)
            searched, held = searched + len(block), 0
            block = []
    near |= index.find_near(block, first=searched)
    near = {row: near[row] for row in sorted(near.keys() - exact)}
    return Twins(sorted(exact), near, train_rows, searched + len(block))


def normalised(text: str) -> str:
    """Remove differences that no reader sees: Unicode forms, case, runs of white space.

    >>> normalised(" Ｎew\\u00a0York\\n")
    'new york'
    """
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(plain.casefold().split())


def only_letters(text: str) -> str:
    """Keep letters and digits of the normalised text, with a space for everything between them."""
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

    def find_near(self, texts: Sequence[str], *, first: int) -> dict[int, tuple[int, float]]:
        """Find rows that are nearly the same as one of these texts: row -> (its number, similarity).

        Args:
            first: the number of the first text.
        """
        usable = np.flatnonzero([len(text) >= SHINGLE for text in texts])
        if not len(usable) or not len(self.bands[0][0]):
            return {}
        their_sketches = sketches([texts[number] for number in usable.tolist()])
        keys = _band_keys(their_sketches)
        begin, end = self._places(keys, "left"), self._places(keys, "right")
        near = {}
        for position in np.flatnonzero((end > begin).any(1)).tolist():
            number = int(usable[position])
            candidates = self._candidates(position, begin[position], end[position])
            for row, similarity in self._verify(
                candidates, their_sketches[position], texts[number]
            ):
                near[row] = first + number, similarity
        return near

    def _places(self, keys: NDArray[np.uint64], side: Literal["left", "right"]) -> Places:
        """Return the places of each text's keys in each band: ``(texts, bands)``."""
        places = [
            np.searchsorted(ours, keys[:, band], side=side)
            for band, (ours, _) in enumerate(self.bands)
        ]
        return np.stack(places, 1)

    def _candidates(self, position: int, begin: Places, end: Places) -> Places:
        """Rows that agree with a text in a band.

        Of templates, alike training texts look at different parts of the rows.
        """
        parts = []
        for band in np.flatnonzero(end > begin).tolist():
            start, size = int(begin[band]), int(end[band] - begin[band])
            if size > MOST_CANDIDATES:
                start += position * MOST_CANDIDATES % (size - MOST_CANDIDATES + 1)
                size = MOST_CANDIDATES
            parts.append(self.bands[band][1][start : start + size])
        candidates = np.unique(np.concatenate(parts))
        return candidates[~self.closed[candidates]]

    def _verify(
        self, candidates: Places, sketch: NDArray[np.uint32], text: str
    ) -> Iterator[tuple[int, float]]:
        """Yield the rows that are near by their shingles, the most alike first; they are not looked at again."""
        alike = (self.sketches[candidates] == sketch).mean(1)
        best = np.argsort(-alike, kind="stable")[:MOST_TRIES]
        theirs = _shingles(text)
        # three standard deviations of the estimate below the threshold: what the sketches call unlike is not verified
        for row in candidates[best[alike[best] >= NEAR - 0.17]].tolist():
            ours = self._shingles(row)
            similarity = len(ours & theirs) / len(ours | theirs)
            if similarity >= NEAR:
                self.closed[row] = True
                yield row, similarity

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
    """Sketch texts by one-permutation MinHash: ``(texts, 48)``; two texts agree in a bin with about the probability of their Jaccard similarity.

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
