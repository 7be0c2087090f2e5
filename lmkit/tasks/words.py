"""Raw text -> words with their place in it: for ``lmkit predict``, and for data whose entities are given in characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Offsets = list[tuple[int, int]]  # (start, end) of each word, in characters

# Scripts that put no spaces between words: Han and kana; Thai, Lao, Burmese, Khmer.
HAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # and kana and Hangul
SOUTHEAST_ASIAN = "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
UNSPACED = (
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3041-\u309f\u30a1-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    + SOUTHEAST_ASIAN
)
IDEOGRAPH = re.compile(
    r"[\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
FIRST_IDEOGRAPH, LAST_CODE = 0x3005, 0xFFFF
JOINERS = "\u200c\u200d"  # zero width: they stand inside words (Persian, Hindi) and emoji


@cache
def word_pattern(how: str) -> re.Pattern[str]:
    r"""Return what a word is, in one of three ways.

    - ``space``: all between spaces.
    - ``punctuation``: a run of letters and digits, or a single other character; letters of scripts that put no spaces
      between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer) stand alone.
    - ``character``: a run of Latin letters and digits, or a single other character.

    Combining marks (vowels of Hindi or Tamil, points of Arabic or Hebrew, tones of Thai) and zero-width joiners stay
    with what they stand on: Python's ``\w`` does not match them.
    """
    # two planes have all but a few of Unicode's marks, and take a twentieth of the time of seventeen
    marks = (
        "".join(
            chr(c) for c in range(0x20000) if unicodedata.category(chr(c)) in ("Mn", "Mc", "Me")
        )
        + JOINERS
    )
    letters = f"(?:[^\\W{UNSPACED}][{marks}]*)+"
    return re.compile(
        {
            "space": r"\S+",
            "punctuation": f"[{UNSPACED}][{marks}]*|{letters}(?:[-'’]{letters})*|[^\\w\\s][{marks}]*",
            "character": f"(?:[A-Za-z0-9][{marks}]*)+|\\S[{marks}]*",
        }[how]
    )


def split_words(text: str, how: str) -> Offsets:
    """Return the words of a raw text as (start, end) in characters; every character but blanks belongs to one.

    >>> split_words("Mr. Wu, 25", "punctuation")
    [(0, 2), (2, 3), (4, 6), (6, 7), (8, 10)]
    >>> split_words("हिन्दी में", "punctuation")
    [(0, 6), (7, 10)]
    """
    return [match.span() for match in word_pattern(how).finditer(text)]


def word_split(words: Sequence[str]) -> str:
    """Tell which way of ``word_pattern`` made these words: most punctuation attached, detached, or single ideographs."""
    ideographs = [
        word for word in words if re.match(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]", word)
    ]
    if len(ideographs) > len(words) / 2 and sum(map(len, ideographs)) < 1.1 * len(ideographs):
        return "character"
    attached = sum(bool(re.search(r"\w[,.;:!?]$", word)) for word in words)
    detached = sum(word in (",", ".", ";", ":", "!", "?") for word in words)
    return "space" if attached > detached else "punctuation"


def joined(words: Sequence[str]) -> tuple[str, Offsets]:
    """Join words that come without a text: the text with a space between them, and their places in it.

    >>> joined(["New York", "is"])
    ('New York is', [(0, 8), (9, 11)])
    """
    offsets: Offsets = []
    start = 0
    for word in words:
        offsets.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), offsets


def word_numbers(
    text: str, word_ids: Sequence[int | None], offsets: Sequence[tuple[int, int]]
) -> list[int]:
    """Return the word that each token belongs to, counted from 0; -1 for special tokens.

    Words are the tokenizer's own, and end at white space besides: a Metaspace tokenizer may call a
    whole sentence one word [transformers#11768]. An ideograph is a word of its own; the bytes of one
    character, and a space that is a token, belong with what they are part of or stand before.

    >>> word_numbers("a bc", [None, 0, 0, 0, None], [(0, 0), (0, 1), (1, 3), (3, 4), (0, 0)])
    [-1, 0, 1, 1, -1]
    """
    import numpy as np

    numbers = np.array([-1 if word is None else word for word in word_ids], dtype=np.int64)
    there = np.flatnonzero(numbers >= 0)
    if not len(there):
        return [-1] * len(numbers)
    words, spans = (
        numbers[there],
        np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2)[there],
    )
    first = max(0, int(spans.min()) - 1)  # and what stands before it
    codes = np.frombuffer(
        text[first : int(spans.max()) + 1].encode("utf-32-le", "surrogatepass"), np.uint32
    )
    spaces = np.concatenate(
        [[0], np.cumsum(_space_codes()[np.minimum(codes, LAST_CODE)])]
    )  # up to each character
    start, end = np.minimum(
        spans - first, len(codes)
    ).T  # each token beside the one before it, from the second on
    last_start, last_end, start = start[:-1], end[:-1], start[1:]
    after_space = spaces[np.minimum(start + 1, len(codes))] > spaces[last_end]
    goes_on = (start < last_end) | (
        (start == last_end)
        & (last_start < last_end)
        & (spaces[last_end] - spaces[last_start] == last_end - last_start)
    )
    is_new = (words[1:] != words[:-1]) | after_space
    if codes.max(initial=0) >= FIRST_IDEOGRAPH:
        matches = [*map(IDEOGRAPH.match, text[first : first + len(codes)]), None]
        ideographs = np.array([match is not None for match in matches])
        is_new |= ideographs[start] | ideographs[np.maximum(last_end - 1, 0)]
    numbers[there] = np.concatenate([[0], np.cumsum(is_new & ~goes_on)])
    found: list[int] = numbers.tolist()
    return found


@cache
def _space_codes() -> np.ndarray:
    """Tell if each character up to ``LAST_CODE`` is white space; none above is."""
    import numpy as np

    return np.array([chr(code).isspace() for code in range(LAST_CODE + 1)])
