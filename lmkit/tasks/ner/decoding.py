"""From scores of each word alone and of neighbouring tags to a sequence: Viterbi and forward-backward, in NumPy.

Emissions are ``(words, tags)`` logarithms, of probabilities or of a CRF's potentials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


class Transitions(NamedTuple):
    """Scores of the first tag ``(tags,)``, of a tag (row) before another (column) ``(tags, tags)``, of the last tag ``(tags,)``."""

    start: Array
    between: Array
    end: Array


def iob2_transitions(labels: Sequence[str]) -> Transitions:
    """Return 0 where IOB2 allows one tag after another, -inf where not: ``I-X`` stands only after ``B-X`` or ``I-X``, ``I`` only after ``B`` or ``I``.

    A part of speech may be called ``I``, too: it is one of IOB2 only where all labels are ``B``, ``I`` and ``O``.

    >>> iob2_transitions(["O", "B-X", "I-X"]).between.tolist()
    [[0.0, 0.0, -inf], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    import numpy as np

    start, between = np.zeros(len(labels)), np.zeros((len(labels), len(labels)))
    is_bare = set(labels) <= {"B", "I", "O"}
    for column, label in enumerate(labels):
        begin = f"B{label[1:]}"
        if (is_bare if label == "I" else label.startswith("I-")) and begin in labels:
            start[column] = -np.inf
            between[[other not in (label, begin) for other in labels], column] = -np.inf
    return Transitions(start, between, np.zeros(len(labels)))


def viterbi(emissions: Array, transitions: Transitions) -> list[int]:
    """Return the tags of the sequence with the highest sum of scores (Viterbi 1967)."""
    best, before = transitions.start + emissions[0], []
    for word in emissions[1:]:
        paths = best[:, None] + transitions.between
        before.append(paths.argmax(axis=0))
        best = paths.max(axis=0) + word
    tags = [int((best + transitions.end).argmax())]
    for choice in reversed(before):
        tags.append(int(choice[tags[-1]]))
    return tags[::-1]


def marginals(emissions: Array, transitions: Transitions) -> Array:
    """Return ``(words, tags)`` probabilities of each tag over all sequences: forward-backward (Rabiner 1989)."""
    import numpy as np

    forward, backward = [transitions.start + emissions[0]], [transitions.end]
    for word in emissions[1:]:
        forward.append(
            np.logaddexp.reduce(forward[-1][:, None] + transitions.between, axis=0) + word
        )
    for word in emissions[:0:-1]:
        backward.append(np.logaddexp.reduce(transitions.between + (word + backward[-1]), axis=1))
    joint = np.stack(forward) + np.stack(backward[::-1])
    probabilities: Array = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
    return probabilities
