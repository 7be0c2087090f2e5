"""What needs no neural model: the floor that a trained model is shown beside."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from lmkit.metrics.statistics import Statistics


def unigram_statistics(
    train: Iterable[Sequence[int]], test: Iterable[tuple[Sequence[int], int]], *, vocabulary: int
) -> Statistics:
    """Every token by its frequency in training, whatever stands around it; add-one smoothed over the vocabulary.

    Args:
        train: tokens by document.
        test: (tokens, bytes of the text) by document.
    """
    from lmkit.metrics.language_model import language_model_statistics

    counts = Counter(token for tokens in train for token in tokens)
    total = sum(counts.values()) + vocabulary
    likeliest = counts.most_common(1)[0][0]
    documents = [(list(tokens), num_bytes) for tokens, num_bytes in test]
    return language_model_statistics(
        [sum(-math.log((counts[token] + 1) / total) for token in tokens) for tokens, _ in documents],
        [len(tokens) for tokens, _ in documents],
        [num_bytes for _, num_bytes in documents],
        [sum(token == likeliest for token in tokens) for tokens, _ in documents],
    )


def nearest_targets(pairs: Sequence[tuple[str, str]], sources: Sequence[str]) -> list[str]:
    """For each source the target of the training pair whose source is most like it: cosine of tf-idf word vectors.

    >>> nearest_targets([("a cat", "un gato"), ("a dog", "un perro")], ["the dog"])
    ['un perro']
    """
    bags = [Counter(source.lower().split()) for source, _ in pairs]
    frequency = Counter(word for bag in bags for word in bag)
    weight = {word: math.log(len(pairs) / count) + 1 for word, count in frequency.items()}
    norms = [math.sqrt(sum((n * weight[word]) ** 2 for word, n in bag.items())) or 1.0 for bag in bags]
    holders: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, bag in enumerate(bags):
        for word, n in bag.items():
            holders[word].append((number, n))
    found = []
    for source in sources:
        scores: dict[int, float] = defaultdict(float)
        for word, n in Counter(source.lower().split()).items():
            for number, count in holders.get(word, ()):
                scores[number] += n * count * weight[word] ** 2 / norms[number]
        found.append(pairs[max(scores, key=lambda number: (scores[number], -number))][1] if scores else pairs[0][1])
    return found
