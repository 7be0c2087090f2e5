"""Rows that also stand in training."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

import lmkit
from lmkit.evaluation import overlap
from lmkit.evaluation.overlap import Twins, only_letters, sketches

SAMPLES = Path(lmkit.__file__).parent / "samples"
LONG = "it was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness"


def found_in(texts: list[str], training: list[str]) -> Twins:
    return overlap.find_overlap(texts, lambda: training)


def test_case_and_spaces_make_no_other_text() -> None:
    found = found_in(["The  Sea", "the ship", "ＴＨＥ SEA"], ["the sea\n", "another"])
    assert (found.exact, found.near, found.train_rows) == ([0, 2], {}, 2)


def test_a_word_more_makes_a_near_duplicate_and_another_text_none() -> None:
    shared = len({only_letters(LONG)[i : i + 5] for i in range(len(only_letters(LONG)) - 4)})
    found = found_in(
        [LONG + " indeed", "call me Ishmael, some years ago, never mind how long"],
        ["x", LONG.upper() + "!"],
    )
    assert found.exact == []
    assert list(found.near) == [0]
    training_row, similarity = found.near[0]
    assert training_row == 1
    assert similarity == pytest.approx(shared / (shared + len(" indeed")), abs=0.01)


def test_near_duplicates_are_those_of_the_plain_comparison() -> None:
    rng = random.Random(7)
    lines = (
        gzip.decompress((SAMPLES / "vader_tweets2/test.jsonl.gz").read_bytes())
        .decode()
        .splitlines()[:150]
    )
    texts = [json.loads(line)["text"] for line in lines]
    training = []
    for text in texts:
        words = text.split()
        training.append(
            " ".join(word for word in words if rng.random() > 0.06)
            + rng.choice(["", " ok", "!!!", " so it is"])
        )
    found = found_in(texts, training)

    def shingles(text: str) -> set[str]:
        plain = only_letters(text)
        return {plain[i : i + 5] for i in range(len(plain) - 4)}

    mine, theirs = [shingles(text) for text in texts], [shingles(text) for text in training]
    expected = {
        i
        for i, one in enumerate(mine)
        if any(one and len(one & two) >= 0.8 * len(one | two) for two in theirs)
    }
    assert set(found.near) == expected - set(found.exact)
    assert len(found.near) > 20


def test_many_alike_templates_take_no_quadratic_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    plain = overlap._shingles

    def counted(text: str) -> frozenset[str]:
        nonlocal compared
        compared += 1
        return plain(text)

    monkeypatch.setattr(overlap, "_shingles", counted)
    line = "the ship number {} sailed from the harbour of the old town and saw a whale"
    found = found_in(
        [line.format(i) for i in range(300)], [line.format(i) for i in range(1000, 1400)]
    )
    assert len(found.near) == 300
    assert compared < 2000  # of 120,000 pairs


def test_texts_without_a_shingle_are_near_nothing() -> None:
    found = found_in(["ab", "", "!!!!!!!"], ["abc", "...", "cd"])
    assert (found.exact, found.near) == ([], {})


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [LONG + f" {i}" for i in range(5)] + ["short one here"]
    training = [f"{i} " + LONG for i in range(7)]
    whole = found_in(texts, training)
    monkeypatch.setattr(overlap, "BLOCK_LETTERS", 150)
    assert found_in(texts, training).near.keys() == whole.near.keys()
    monkeypatch.setattr(overlap, "MOST_LETTERS", 150)
    assert found_in(texts, training).searched < 7


def test_sketches_agree_as_often_as_texts_are_alike() -> None:
    rng = random.Random(1)
    words = [f"w{rng.randrange(10**6)}" for _ in range(2000)]
    left, right = " ".join(words), " ".join(words[:1500] + [f"v{word}" for word in words[1500:]])
    a, b = overlap._shingles(left), overlap._shingles(right)
    alike = (sketches([left])[0] == sketches([right])[0]).mean()
    assert alike == pytest.approx(len(a & b) / len(a | b), abs=0.2)


def test_texts_are_compared_in_parts_as_they_are_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the sea", LONG + " indeed", "a ship", LONG, "the sea"]
    training = ["The Sea", LONG.upper() + "!"]
    whole = found_in(texts, training)
    assert (whole.exact, sorted(whole.near), whole.train_rows) == ([0, 4], [1, 3], 2)
    monkeypatch.setattr(overlap, "BLOCK_TEXTS", 2)
    assert found_in(texts, training) == whole
