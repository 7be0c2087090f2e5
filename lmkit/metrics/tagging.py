"""Entities and words of tagged sentences: conlleval's precision, recall and F1, strict F1, accuracy."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np

from lmkit.errors import DataError
from lmkit.metrics.classification import label_counts, label_metrics, report
from lmkit.metrics.statistics import FloatArray, Statistics, label_report, ratio

Tags = Sequence[Sequence[str]]
IOB2_TAG = re.compile(r"O|[BI](-.*)?", re.DOTALL)
UNNAMED = "_"  # the type of entities whose tags have none (B, I), as seqeval calls it


def tagging_statistics(gold: Tags, predicted: Tags, *, entities: bool | None = None) -> Statistics:
    """Metrics of tagged sentences, all 0..1, 0/0 is 0; an example is a sentence.

    IOB2 tags (``B-X``, ``I-X`` and ``O``, or without types ``B``, ``I`` and ``O``) give ``precision``, ``recall`` and ``f1`` of entities, micro-averaged, equal to conlleval (Tjong Kim Sang
    and Buchholz 2000), ``f1_strict``, equal to seqeval's ``mode="strict", scheme=IOB2``, and ``accuracy`` of words,
    ``O`` included. Other tags (parts of speech) give ``accuracy`` of words and ``f1_macro`` over the tags that occur.

    Args:
        gold: ``(sentences, words)`` tags; an empty sentence counts as one without entities.
        predicted: tags of the same shape.
        entities: whether the tags mark entities, for who knows it of all that there are; None: as these here look.

    Raises:
        DataError: some tags are IOB2 and others are not (IOBES, BILOU): their entities would be counted wrongly.
    """
    assert len(gold) == len(predicted), f"{len(gold)} gold sentences, {len(predicted)} predicted"
    for i, (gold_tags, predicted_tags) in enumerate(zip(gold, predicted, strict=True)):
        assert len(gold_tags) == len(predicted_tags), (
            f"sentence {i}: {len(gold_tags)} gold tags, {len(predicted_tags)} predicted"
        )
    tags = sorted(
        {tag for sentences in (gold, predicted) for sentence in sentences for tag in sentence}
    )
    if not (is_iob2(tags) if entities is None else entities):
        return _word_statistics(gold, predicted, tags)
    _check_iob2(tags)
    return _entity_statistics(gold, predicted)


def is_iob2(tags: Collection[str]) -> bool:
    """Tell if the tags mark entities: all are ``O``, ``B-X``, ``I-X``, or ``O``, ``B``, ``I``; True for no tags at all.

    Raises:
        DataError: there are ``B-X`` or ``I-X``, and also tags of another kind.
    """
    if any(tag.startswith(("B-", "I-")) for tag in tags):
        _check_iob2(tags)
        return True
    # A bare B or I is IOB2 only among its like: one-letter parts of speech use both. I alone marks no beginning.
    return set(tags) <= {"O"} or {"B"} <= set(tags) <= {"B", "I", "O"}


def _check_iob2(tags: Collection[str]) -> None:
    wrong = [tag for tag in tags if not IOB2_TAG.fullmatch(tag)]
    if wrong:
        raise DataError(
            f"tag {wrong[0]!r} is not IOB2, though others are",
            remedy="write the tags as B-TYPE, I-TYPE and O",
        )


def type_of(tag: str) -> str:
    """Return the type of the entity that an IOB2 tag marks.

    >>> type_of("B-X-Y"), type_of("B")
    ('X-Y', '_')
    """
    return tag.partition("-")[2] or UNNAMED


def chunks(tags: Sequence[str], *, strict: bool = False) -> set[tuple[int, int, str]]:
    """Return the entities of one sentence as (start, end, type), end exclusive.

    As conlleval reads them, an ``I-X`` that continues no ``X`` starts one: at the beginning, after ``O``, after another
    type. With ``strict`` only ``B-X`` starts one. seqeval documents its default as conlleval's, and agrees with it on
    IOB2 tags, but not with its own strict mode: https://github.com/chakki-works/seqeval/issues/23

    >>> sorted(chunks(["I-PER", "I-LOC", "B-LOC", "I-LOC", "O"]))
    [(0, 1, 'PER'), (1, 2, 'LOC'), (2, 4, 'LOC')]
    >>> sorted(chunks(["I-PER", "I-LOC", "B-LOC", "I-LOC", "O"], strict=True))
    [(2, 4, 'LOC')]
    >>> sorted(chunks(["B", "I", "O", "B"]))
    [(0, 2, '_'), (3, 4, '_')]
    """
    entities: set[tuple[int, int, str]] = set()
    open_chunk: tuple[int, str] | None = None
    for position, tag in enumerate([*tags, "O"]):
        prefix, kind = tag.partition("-")[0], type_of(tag)
        if open_chunk and prefix == "I" and kind == open_chunk[1]:
            continue
        if open_chunk:
            entities.add((open_chunk[0], position, open_chunk[1]))
        open_chunk = (position, kind) if prefix == "B" or (prefix == "I" and not strict) else None
    return entities


def _entity_statistics(gold: Tags, predicted: Tags) -> Statistics:
    """Columns: [correct, predicted, gold] x (types, then all of them read strictly), then [correct words, words]."""
    lenient = [(chunks(g), chunks(p)) for g, p in zip(gold, predicted, strict=True)]
    types = sorted({kind for pair in lenient for found in pair for _, _, kind in found})
    index = {kind: i for i, kind in enumerate(types)}
    entities = np.zeros((len(lenient), 3, len(types) + 1))
    words = np.zeros((len(lenient), 2))
    for row, (gold_chunks, predicted_chunks) in enumerate(lenient):
        for column, found in enumerate(
            (gold_chunks & predicted_chunks, predicted_chunks, gold_chunks)
        ):
            for _, _, kind in found:
                entities[row, column, index[kind]] += 1
        gold_strict, predicted_strict = (
            chunks(gold[row], strict=True),
            chunks(predicted[row], strict=True),
        )
        entities[row, :, -1] = (
            len(gold_strict & predicted_strict),
            len(predicted_strict),
            len(gold_strict),
        )
        words[row] = (
            sum(g == p for g, p in zip(gold[row], predicted[row], strict=True)),
            len(gold[row]),
        )

    def entity_metrics(sums: FloatArray) -> dict[str, FloatArray]:
        by_type = sums[..., :-2].reshape(*sums.shape[:-1], 3, -1)
        correct, guessed, actual = np.moveaxis(by_type[..., :-1].sum(axis=-1), -1, 0)
        correct_strict, guessed_strict, actual_strict = np.moveaxis(by_type[..., -1], -1, 0)
        return {
            "precision": ratio(correct, guessed),
            "recall": ratio(correct, actual),
            "f1": ratio(2 * correct, guessed + actual),
            "f1_strict": ratio(2 * correct_strict, guessed_strict + actual_strict),
            "accuracy": ratio(sums[..., -2], sums[..., -1]),
        }

    def by_type(sums: FloatArray) -> dict[str, dict[str, float]]:
        correct, guessed, actual = sums[:-2].reshape(3, -1)[:, :-1]
        return label_report(types, correct, guessed, actual)

    return Statistics(
        np.concatenate([entities.reshape(len(lenient), 3 * (len(types) + 1)), words], axis=1),
        entity_metrics,
        by_type,
    )


def _word_statistics(gold: Tags, predicted: Tags, tags: list[str]) -> Statistics:
    """Return the classification of words, summed by sentence: words of one sentence are not independent draws."""
    rows = np.repeat(np.arange(len(gold)), [len(sentence) for sentence in gold])
    gold_words = [tag for sentence in gold for tag in sentence]
    predicted_words = [tag for sentence in predicted for tag in sentence]
    counts = label_counts(gold_words, predicted_words, tags, rows, len(gold))

    def word_metrics(sums: FloatArray) -> dict[str, FloatArray]:
        metrics = label_metrics(sums)
        return {name: metrics[name] for name in ("accuracy", "f1_macro")}

    return Statistics(counts, word_metrics, lambda sums: report(tags, sums))
