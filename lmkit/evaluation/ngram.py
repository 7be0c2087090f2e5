"""An interpolated Kneser-Ney n-gram model (Kneser and Ney 1995; Chen and Goodman 1999), exact, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmkit.batch import IGNORE

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def grams(
    seen: Sequence[int], labels: Sequence[int], *, order: int, causal: bool, pad: int
) -> Integers:
    """Return the tokens to predict, each with the tokens before it: ``(targets, order)``, the target last.

    Args:
        seen: what the model reads. labels: of the same length, -100 where nothing is predicted.
        causal: a label is the token after its position, as for causal models; else the token at it.
        pad: stands for what is before the beginning.
    """
    line = np.concatenate([np.full(order - 1, pad), np.asarray(seen, np.int64)])
    targets = np.asarray(labels, np.int64)
    positions = np.flatnonzero(targets != IGNORE)
    table = np.empty((len(positions), order), np.int64)
    for column in range(order - 1):
        table[:, column] = line[positions + column + causal]
    table[:, -1] = targets[positions]
    return table


@dataclass(frozen=True)
class _Level:
    """N-grams of one length: a context is a number, an n-gram is ``context * base + token``; both sorted."""

    context_keys: Integers  # (contexts,) shorter context * base + the token before it
    gram_keys: Integers  # (grams,)
    probability: Floats  # (grams,)
    left: Floats  # (contexts,) the share that is left to shorter contexts
    best_token: Integers  # (contexts,) the likeliest next token, seen here or not
    best_probability: Floats


class KneserNey:
    """Probabilities of tokens after up to ``order - 1`` others.

    The longest n-grams count as often as they occur, shorter ones by the number of different tokens before them. One
    discount a length, n1 / (n1 + 2 n2), or 0.75 where that is not between 0 and 1; unseen tokens share what the
    shortest leave, equally.

    Args:
        training: ``(targets, order)`` as ``grams`` makes them.
        vocabulary: number of tokens; larger numbers may stand in contexts, up to ``vocabulary`` itself (padding).
    """

    def __init__(self, training: Integers, vocabulary: int):
        self.vocabulary, self.order, self._base = vocabulary, training.shape[1], vocabulary + 1
        self._levels: list[_Level] = []
        counted = [self._count(training, length) for length in range(1, self.order + 1)]
        for length, (context_keys, gram_keys, first, inverse) in enumerate(counted, 1):
            if length == self.order:
                counts = np.bincount(inverse, minlength=len(gram_keys))
            else:  # how many longer n-grams end so
                counts = np.bincount(inverse[counted[length][2]], minlength=len(gram_keys))
            lower = (
                self._levels[-1].probability[counted[length - 2][3][first]]
                if length > 1
                else 1 / vocabulary
            )
            self._levels.append(self._level(context_keys, gram_keys, counts, lower))

    def _count(
        self, training: Integers, length: int
    ) -> tuple[Integers, Integers, Integers, Integers]:
        """Sorted contexts and n-grams of a length, where each n-gram stands first, and which n-gram each target is."""
        context_keys, context = np.zeros(1, np.int64), np.zeros(len(training), np.int64)
        for distance in range(1, length):
            context_keys, context = np.unique(
                context * self._base + training[:, -1 - distance], return_inverse=True
            )
        keys, first, inverse = np.unique(
            context * self._base + training[:, -1], return_index=True, return_inverse=True
        )
        return context_keys, keys, first, inverse

    def _level(
        self, context_keys: Integers, gram_keys: Integers, counts: Integers, lower: Floats | float
    ) -> _Level:
        context = gram_keys // self._base
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once and twice else 0.75
        total = np.bincount(context, counts, minlength=len(context_keys))
        left = discount * np.bincount(context, minlength=len(context_keys)) / total
        probability = (counts - discount) / total[context] + left[context] * lower
        starts = np.searchsorted(context, np.arange(len(context_keys)))
        best = np.maximum.reduceat(probability, starts)
        winners = np.flatnonzero(probability == best[context])
        token = (
            gram_keys[winners[np.searchsorted(context[winners], np.arange(len(context_keys)))]]
            % self._base
        )
        if (
            self._levels
        ):  # the best of a shorter context, not seen after this one, may still be likelier
            parent, shorter = context_keys // self._base, self._levels[-1]
            unseen = left * shorter.best_probability[parent]
            token = np.where(unseen > best, shorter.best_token[parent], token)
            best = np.maximum(best, unseen)
        return _Level(context_keys, gram_keys, probability, left, token, best)

    def predict(self, asked: Integers) -> tuple[Floats, Integers]:
        """Return the probability of each target ``(targets,)``, and the token that is likeliest there."""
        probability = np.full(len(asked), 1 / self.vocabulary)
        context, is_known = np.zeros(len(asked), np.int64), np.ones(len(asked), bool)
        likeliest = np.zeros(len(asked), np.int64)
        for length, level in enumerate(self._levels, 1):
            if length > 1:
                context, there = _find(level.context_keys, context * self._base + asked[:, -length])
                is_known = is_known & there
            gram, seen = _find(level.gram_keys, context * self._base + asked[:, -1])
            here = np.where(seen, level.probability[gram], level.left[context] * probability)
            probability = np.where(is_known, here, probability)
            likeliest = np.where(is_known, level.best_token[context], likeliest)
        return probability, likeliest


def _find(keys: Integers, asked: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    """Return the place of each key among the sorted ones, any place where it is missing, and if it is there."""
    places = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return places, keys[places] == asked
