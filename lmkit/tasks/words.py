"""Raw text -> words with their place in it: for ``lmkit predict``, and for data whose entities are given in characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

Offsets = list[tuple[int, int]]  # (start, end) of each word, in characters

# Scripts that put no spaces between words: Han and kana; Thai, Lao, Burmese, Khmer.
HAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # and kana and Hangul
SOUTHEAST_ASIAN = "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
UNSPACED = (
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3041-\u309f\u30a1-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    + SOUTHEAST_ASIAN
)
JOINERS = "\u200c\u200d"  # zero width: they stand inside words (Persian, Hindi) and emoji


@cache
def word_pattern(how: str) -> re.Pattern[str]:
    r"""What a word is, in one of three ways.

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
    """The words of a raw text as (start, end) in characters; every character but blanks belongs to one.

    >>> split_words("Mr. Wu, 25", "punctuation")
    [(0, 2), (2, 3), (4, 6), (6, 7), (8, 10)]
    >>> split_words("हिन्दी में", "punctuation")
    [(0, 6), (7, 10)]
    """
    return [match.span() for match in word_pattern(how).finditer(text)]


def word_split(words: Sequence[str]) -> str:
    """Which way of ``word_pattern`` made these words: most punctuation attached, detached, or single ideographs."""
    ideographs = [
        word for word in words if re.match(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]", word)
    ]
    if len(ideographs) > len(words) / 2 and sum(map(len, ideographs)) < 1.1 * len(ideographs):
        return "character"
    attached = sum(bool(re.search(r"\w[,.;:!?]$", word)) for word in words)
    detached = sum(word in (",", ".", ";", ":", "!", "?") for word in words)
    return "space" if attached > detached else "punctuation"


def joined(words: Sequence[str]) -> tuple[str, Offsets]:
    """Words that come without a text: the text with a space between them, and their places in it.

    >>> joined(["New York", "is"])
    ('New York is', [(0, 8), (9, 11)])
    """
    offsets: Offsets = []
    start = 0
    for word in words:
        offsets.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), offsets
