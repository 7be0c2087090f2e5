"""The gaps of a text: what marks them, and where they lie."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")  # mT5's have the mark of a space
Span = tuple[int, int]  # the first token and the one behind the last


def sentinels_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens ``<extra_id_0>``, ``<extra_id_1>``, ... by number; none where the tokenizer has none."""
    numbered = {
        int(match[1]): number
        for token, number in tokenizer.get_vocab().items()
        if (match := SENTINEL.fullmatch(token))
    }
    return [numbered[number] for number in sorted(numbered)]


def gap_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what marks the first gap of a text."""
    return "<extra_id_0>" if sentinels_of(tokenizer) else str(tokenizer.mask_token)


def surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before a text and behind it."""
    whole = tokenizer("a", verbose=False)["input_ids"]
    text = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    start = next(start for start in range(len(whole)) if whole[start : start + len(text)] == text)
    return whole[:start], whole[start + len(text) :]


def draw_spans(
    size: int, share: float, mean: float, *, rng: Any, poisson: bool = False
) -> list[Span]:
    """Draw where the gaps of a text lie: apart from one another, any way of placing them as likely as any other.

    The number of tokens in gaps is ``share * size``, rounded up or down at random so that the share holds for short texts,
    too; but at least one, and not all of several. Without ``poisson`` as many gaps as their ``mean`` length wants, rounded alike,
    all ways of dividing the tokens among them equally likely (Raffel et al. 2020; unlike theirs, a text may begin with a gap
    and need not end with one). With ``poisson`` lengths are drawn until there are enough tokens (Lewis et al. 2020); some are 0.

    Args:
        size: tokens of the text; 0 has no gap.
    """
    import numpy as np

    if not size:
        return []
    tokens = max(1, min(size - 1, int(size * share + rng.random())))
    places = size - tokens + 1  # before, between and behind the tokens that stay
    if poisson:
        drawn = rng.poisson(mean, 4 * tokens + 8)
        enough = 1 + int(np.searchsorted(np.cumsum(drawn), tokens))
        lengths = drawn[
            : min(enough, places, tokens)
        ]  # no more marks than tokens that they hide: the text grows no longer
        lengths[-1] += tokens - lengths.sum()
        lengths = rng.permutation(lengths)
    else:
        count = min(places, max(1, int(tokens / mean + rng.random())))
        cuts = np.sort(rng.choice(tokens - 1, count - 1, replace=False)) + 1
        lengths = np.diff([0, *cuts, tokens])
    ends = np.sort(rng.choice(places, len(lengths), replace=False)) + np.cumsum(lengths)
    return list(zip((ends - lengths).tolist(), ends.tolist(), strict=True))


def corrupt(
    tokens: Sequence[int], spans: Sequence[Span], marks: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the text with a mark for every span, and the spans, each behind its mark; one mark more where the text goes on.

    >>> corrupt([1, 2, 3, 4, 5, 6], [(1, 3), (4, 5)], [-1, -2, -3])
    ([1, -1, 4, -2, 6], [-1, 2, 3, -2, 5, -3])
    >>> corrupt([1, 2, 3], [(0, 1), (2, 3)], [-1, -2, -3])
    ([-1, 2, -2], [-1, 1, -2, 3])
    """
    seen: list[int] = []
    missing: list[int] = []
    last = 0
    for (start, end), mark in zip(spans, marks, strict=False):
        seen += [*tokens[last:start], mark]
        missing += [mark, *tokens[start:end]]
        last = end
    if last < len(tokens):
        seen += tokens[last:]
        missing.append(marks[len(spans)])
    return seen, missing
