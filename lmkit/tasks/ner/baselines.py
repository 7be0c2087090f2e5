"""A simple tagger that needs rows alone: each word with its most frequent tag."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from lmkit.batch import Row
from lmkit.tasks.base import Baseline
from lmkit.tasks.ner.entities import marks_entities


def baselines_of(labels: Sequence[str]) -> tuple[Baseline, ...]:
    """Return the baselines for these tags."""

    def tag(train: Sequence[Row], rows: Sequence[Row]) -> list[list[str]]:
        sentences = [(row["tokens"], row["tags"]) for row in train]
        return most_frequent_tags(sentences, [row["tokens"] for row in rows], labels=labels)

    return (Baseline("most_frequent_tag", tag),)


def most_frequent_tags(
    sentences: Sequence[tuple[Sequence[str], Sequence[str]]],
    wanted: Sequence[Sequence[str]],
    *,
    labels: Sequence[str],
) -> list[list[str]]:
    """Tag each word with the tag it has most often; unknown ones with ``O``, or without an ``O`` with the commonest tag.

    An ``I-X`` that continues nothing becomes ``B-X``, which is how conlleval reads it.

    >>> most_frequent_tags([(["in", "New", "York"], ["O", "B-LOC", "I-LOC"])], [["York", "York", "x"]], labels=["O"])
    [['B-LOC', 'I-LOC', 'O']]
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in sentences:
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    everything = sum(counts.values(), Counter())
    unknown = "O" if "O" in labels else max(sorted(everything), key=everything.__getitem__)
    best = {word: max(sorted(found), key=found.__getitem__) for word, found in counts.items()}
    is_entities = marks_entities({*labels, *everything})
    answers = []
    for words in wanted:
        answer: list[str] = []
        for word in words:
            tag = best.get(word, unknown)
            if (
                is_entities
                and tag[0] == "I"
                and (not answer or answer[-1] == "O" or answer[-1][1:] != tag[1:])
            ):
                tag = "B" + tag[1:]
            answer.append(tag)
        answers.append(answer)
    return answers
