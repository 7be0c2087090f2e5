"""Simple translators that need rows alone: the source itself, the nearest training pair, a dictionary."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from lmkit.batch import Row
from lmkit.tasks.base import Baseline
from lmkit.tasks.words import HAN

MOST_LINKS = 3_000_000  # between words of a pair; more would take minutes
WORD = re.compile(rf"[{HAN}]|[^\W{HAN}]+(?:['’-][^\W{HAN}]+)*|[^\w\s]")


def copy_sources(train: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """Answer with the source."""
    return [row["source"] for row in rows]


def take_nearest(train: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """Answer with the target of the nearest training pair."""
    return nearest_targets(_pairs(train), [row["source"] for row in rows])


def look_up_words(train: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """Answer word by word."""
    return word_by_word(_pairs(train), [row["source"] for row in rows])


BASELINES = (
    Baseline("source_copy", copy_sources),
    Baseline("nearest_training_pair", take_nearest),
    Baseline("word_by_word", look_up_words),
)


def _pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(row["source"], row["target"]) for row in rows]


def nearest_targets(pairs: Sequence[tuple[str, str]], sources: Sequence[str]) -> list[str]:
    """Return for each source the target of the training pair whose source is most like it: cosine of tf-idf word vectors.

    >>> nearest_targets([("a cat", "un gato"), ("a dog", "un perro")], ["the dog"])
    ['un perro']
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(token_pattern=None, tokenizer=WORD.findall)
    training = vectors.fit_transform([source for source, _ in pairs]).T
    targets = []
    for start in range(0, len(sources), 256):
        likeness = vectors.transform(sources[start : start + 256]) @ training
        targets += [pairs[best][1] for best in likeness.toarray().argmax(axis=1)]
    return targets


def word_by_word(pairs: Sequence[tuple[str, str]], sources: Sequence[str]) -> list[str]:
    """Translate each word by its likeliest translation after five rounds of IBM model 1 (Brown et al. 1993); unknown words copied.

    >>> word_by_word([("a cat", "un gato"), ("a dog", "un perro"), ("the dog", "el perro")], ["the cat."])
    ['el gato.']
    """
    dictionary = ibm_model_1(pairs)
    answers = []
    for source in sources:
        words = [dictionary.get(word.lower(), word) for word in WORD.findall(source)]
        text = re.sub(r"(?<=[¿¡(]) | (?=[.,;:!?%)…。，、？！])", "", " ".join(words))
        text = re.sub(rf"(?<=[{HAN}]) (?=[{HAN}])", "", text)
        answers.append(text[:1].upper() + text[1:] if source[:1].isupper() else text)
    return answers


def ibm_model_1(pairs: Sequence[tuple[str, str]], *, rounds: int = 5) -> dict[str, str]:
    """Return the likeliest translation of lower-cased source words, of lower-cased targets."""
    numbers: tuple[dict[str, int], dict[str, int]] = (
        {"": 0},
        {},
    )  # "" is the word that unexplained ones come from
    sources, targets, owners = [], [], []
    first = links = 0
    for pair in pairs:
        source, target = (
            np.array(
                [known.setdefault(word.lower(), len(known)) for word in WORD.findall(text)],
                np.int64,
            )
            for known, text in zip(numbers, pair, strict=True)
        )
        source = np.append(source, 0)
        sources.append(np.tile(source, len(target)))
        targets.append(np.repeat(target, len(source)))
        owners.append(np.repeat(first + np.arange(len(target)), len(source)))
        first += len(target)
        links += len(sources[-1])
        if links > MOST_LINKS:
            break
    width = max(1, len(numbers[1]))
    kinds, kind = np.unique(
        np.concatenate(sources) * width + np.concatenate(targets), return_inverse=True
    )
    owner, of_source = np.concatenate(owners), kinds // width
    probability = np.ones(len(kinds))
    for _ in range(rounds):
        share = probability[kind]
        share /= np.bincount(owner, share)[owner]
        expected = np.bincount(kind, share, minlength=len(kinds))
        probability = expected / np.bincount(of_source, expected)[of_source]
    order = np.lexsort((-probability, of_source))
    best = order[np.unique(of_source[order], return_index=True)[1]]
    names = [list(known) for known in numbers]
    return {
        names[0][kinds[i] // width]: names[1][kinds[i] % width] for i in best if kinds[i] >= width
    }
