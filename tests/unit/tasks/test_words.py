"""Raw text in many scripts, cut so that no mark leaves its letter."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmkit.tasks.words import joined, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी में लिखो।", ["हिन्दी", "में", "लिखो", "।"]),  # vowel signs are Mn and Mc
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("كَتَبَ الوَلَدُ.", ["كَتَبَ", "الوَلَدُ", "."]),  # short vowels written
        ("שָׁלוֹם עוֹלָם", ["שָׁלוֹם", "עוֹלָם"]),
        ("می‌خواهم بروم", ["می‌خواهم", "بروم"]),  # a zero-width non-joiner within
        ("क्‍ष x", ["क्‍ष", "x"]),  # a zero-width joiner
        ("cafe\u0301-bar, e\u0301", ["cafe\u0301-bar", ",", "e\u0301"]),
        ("❤\ufe0f!", ["❤\ufe0f", "!"]),
        ("2019年A4用紙", ["2019", "年", "A4", "用", "紙"]),
        ("東京タワー", ["東", "京", "タ", "ワ", "ー"]),
        (
            "น้ำ ดี",
            ["น้", "ำ", "ดี"],
        ),  # Thai has no spaces between words: letters, with their tones and vowels
        ("서울은 한국", ["서울은", "한국"]),  # Korean has
    ],
)
def test_marks_stay_with_their_letters_and_unspaced_scripts_are_cut_into_letters(
    text: str, words: list[str]
) -> None:
    assert [text[start:end] for start, end in split_words(text, "punctuation")] == words


def test_marks_stay_with_single_characters_too() -> None:
    text = "春が\u3099e\u0301"
    assert [text[start:end] for start, end in split_words(text, "character")] == [
        "春",
        "が\u3099",
        "e\u0301",
    ]


@pytest.mark.parametrize("how", ["space", "punctuation", "character"])
@given(text=st.text(max_size=30))
def test_every_character_but_blanks_belongs_to_one_word(how: str, text: str) -> None:
    words = split_words(text, how)
    assert "".join(text[start:end] for start, end in words) == "".join(text.split())
    assert all(end <= start for (_, end), (start, _) in pairwise(words))


def test_words_without_a_text_get_one_with_their_places() -> None:
    words = ["New York", "上\u3000海", "x"]
    text, offsets = joined(words)
    assert [text[start:end] for start, end in offsets] == words
