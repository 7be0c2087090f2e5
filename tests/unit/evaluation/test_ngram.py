from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from lmkit.evaluation.ngram import KneserNey, grams


def test_targets_come_with_the_tokens_before_them() -> None:
    assert grams([5, 6, 7], [6, 7, 8], order=3, causal=True, pad=9).tolist() == [
        [9, 5, 6],
        [5, 6, 7],
        [6, 7, 8],
    ]
    assert grams([5, 1, 7], [-100, 6, -100], order=3, causal=False, pad=9).tolist() == [[9, 5, 6]]


def test_bigrams_computed_by_hand() -> None:
    """0 1 0 2: all bigrams occur once, so the discount is 0.75; 0 follows two tokens, 1 and 2 one each: 2 / (2 + 2) = 0.5."""
    model = KneserNey(grams([0, 1, 0, 2], [0, 1, 0, 2], order=2, causal=False, pad=3), 3)
    wanted = np.array([[0, 0], [0, 1], [0, 2], [2, 0], [2, 1], [2, 2]])
    probability, likeliest = model.predict(wanted)
    # p(0) = 1.5/4 + 0.375/3, p(1) = p(2) = 0.5/4 + 0.375/3; after 0: 0.25/2 + 0.75 p, or 0.75 p; after 2 nothing is known
    assert probability.tolist() == pytest.approx([0.375, 0.3125, 0.3125, 0.5, 0.25, 0.25])
    assert likeliest.tolist() == [0] * 6  # after 0 too, where it never stood


def by_definition(tokens: list[int], order: int, vocabulary: int) -> np.ndarray:
    """All probabilities after the last ``order - 1`` tokens, straight from the recursion of Chen and Goodman (1999)."""
    padded = [vocabulary] * (order - 1) + tokens
    counts: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
    for end in range(order - 1, len(padded)):
        counts[order][tuple(padded[end - order + 1 : end + 1])] += 1
    for length in range(order - 1, 0, -1):
        ends = {tuple(padded[end - length : end + 1]) for end in range(order - 1, len(padded))}
        counts[length] = Counter(gram[1:] for gram in ends)
    answer = np.full(vocabulary, 1 / vocabulary)
    for length in range(1, order + 1):
        values = list(counts[length].values())
        once, twice = values.count(1), values.count(2)
        discount = once / (once + 2 * twice) if once and twice else 0.75
        followers: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
        for gram, count in counts[length].items():
            followers[gram[:-1]][gram[-1]] = count
        here = followers.get(tuple(padded[len(padded) - length + 1 :]) if length > 1 else ())
        if here is None:
            break
        total = sum(here.values())
        answer = np.array(
            [max(here.get(w, 0) - discount, 0) / total for w in range(vocabulary)]
        ) + (discount * len(here) / total * answer)
    return answer


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_the_definition_sums_to_one_and_knows_the_likeliest(order: int) -> None:
    generator = np.random.default_rng(order)
    for _ in range(20):
        vocabulary = 6
        tokens = generator.choice(vocabulary - 1, size=40, p=[0.4, 0.3, 0.15, 0.1, 0.05]).tolist()
        model = KneserNey(
            grams(tokens, tokens, order=order, causal=False, pad=vocabulary), vocabulary
        )
        after = ([vocabulary] * order + tokens)[len(tokens) + 1 :]  # the last order - 1 tokens
        probability, likeliest = model.predict(np.array([[*after, w] for w in range(vocabulary)]))
        expected = by_definition(tokens, order, vocabulary)
        assert probability == pytest.approx(expected)
        assert probability.sum() == pytest.approx(1)
        assert expected[likeliest[0]] == pytest.approx(expected.max())


def test_unknown_context_is_left_for_a_shorter_one() -> None:
    tokens = [0, 1, 2, 0, 1, 3]
    model = KneserNey(grams(tokens, tokens, order=3, causal=False, pad=9), 9)
    known, unknown = model.predict(np.array([[8, 1, 2], [7, 1, 2]]))[0]
    assert known == unknown
    assert model.predict(np.array([[0, 1, 2]]))[0] != known
