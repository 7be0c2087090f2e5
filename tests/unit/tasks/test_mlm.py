"""What is hidden, how, and that the same is hidden again."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmkit.batch import IGNORE
from lmkit.tasks.mlm.task import choose
from lmkit.tasks.words import IDEOGRAPH, word_numbers

ALGORITHMS = ("wordpiece", "bpe", "unigram")
THIRTEEN = "Call me Ishmael and I will sail about a little with the whale"
TEXTS = "sample:mobydick_en/train.txt.gz"


def encoded(tiny: Any, algorithm: str, **masking: Any) -> tuple[Any, Any]:
    recipe = tiny.recipe(
        "mlm",
        tokenizer={"train": {"algorithm": algorithm}},
        data={"train": TEXTS, "validation": None, "columns": {}, "max_rows": 40, "max_length": 128},
        masking=masking,
    )
    prepared = tiny.prepared(recipe)
    return prepared.task, prepared.encoded["train"]


def all_masked(
    task: Any, data: Any, epoch: int = 0
) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
    """The pieces of a split, what the model sees, and the labels: ``(pieces, longest)``."""
    pieces = [piece for number in range(len(data)) for piece in data.example(number)]
    batch = task.collate([[piece] for piece in pieces], epoch=epoch)
    return pieces, batch.inputs["input_ids"].numpy(), batch.labels.numpy()


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_share_is_predicted_and_eight_tenths_of_it_hidden(
    tiny: Any, algorithm: str, whole_words: bool
) -> None:
    task, data = encoded(tiny, algorithm, whole_words=whole_words)
    epochs = [all_masked(task, data, epoch) for epoch in range(4)]
    pieces = epochs[0][0]
    there = (
        np.arange(epochs[0][1].shape[1]) < np.array([piece["length"] for piece in pieces])[:, None]
    )
    originals = np.tile(np.concatenate([piece["input_ids"] for piece in pieces]), len(epochs))
    seen = np.concatenate([seen[there] for _, seen, _ in epochs])
    labels = np.concatenate([labels[there] for _, _, labels in epochs])
    special = np.isin(originals, task.tokenizer.all_special_ids) & (
        originals != task.tokenizer.unk_token_id
    )
    predicted = labels != IGNORE
    assert len(originals) > 40_000
    assert predicted[~special].mean() == pytest.approx(0.15, abs=0.01)
    assert not predicted[special].any()
    assert (labels[predicted] == originals[predicted]).all()
    assert (seen[~predicted] == originals[~predicted]).all()
    hidden = seen[predicted] == task.tokenizer.mask_token_id
    kept = seen[predicted] == originals[predicted]
    assert hidden.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    assert not np.isin(seen[predicted][~hidden & ~kept], task.tokenizer.all_special_ids).any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_whole_words_are_predicted_with_all_their_tokens_or_not_at_all(
    tiny: Any, algorithm: str
) -> None:
    task, data = encoded(tiny, algorithm, whole_words=True)
    pieces, _, labels = all_masked(task, data)
    several = 0
    for piece, row in zip(pieces, labels, strict=True):
        predicted, words = row[: piece["length"]] != IGNORE, np.array(piece["words"])
        for word in range(words.max() + 1):
            assert len(set(predicted[words == word])) == 1
            several += (words == word).sum() > 1 and predicted[words == word].all()
    assert several > 50


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_words_are_words_for_every_kind_of_tokenizer(tiny: Any, algorithm: str) -> None:
    """A sentence of 13 words was one word for byte-level and Metaspace tokenizers [transformers#11768]."""
    task, _ = encoded(tiny, algorithm)
    columns = task.encode([{"id": 0, "text": THIRTEEN}])
    (words,) = columns["words"]
    assert words[0] == words[-1] == -1
    assert sorted(set(words)) == list(range(-1, 13))
    by_word: dict[int, list[int]] = {}
    for token, word in zip(columns["input_ids"][0], words, strict=True):
        by_word.setdefault(word, []).append(token)
    assert [task.tokenizer.decode(by_word[word]).strip() for word in range(13)] == THIRTEEN.split()


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
def test_ideographs_are_words_of_their_own_and_their_bytes_belong_together(
    tiny: Any, algorithm: str
) -> None:
    task, _ = encoded(tiny, algorithm)
    (words,) = task.encode([{"id": 0, "text": "春日何来，深雪里 whale"}])["words"]
    assert max(words) + 1 == 9


def test_a_mark_of_a_word_belongs_to_it() -> None:
    text = "in 春"  # as XLM-R has it: the mark of the next word apart from its letter
    assert word_numbers(text, [None, 0, 0, 0, None], [(0, 0), (0, 2), (2, 3), (3, 4), (0, 0)]) == [
        -1,
        0,
        1,
        1,
        -1,
    ]


def one_by_one(text: str, word_ids: list[int | None], offsets: list[tuple[int, int]]) -> list[int]:
    """The rule of ``word_numbers``, token after token."""
    numbers: list[int] = []
    current, previous, last_start, last_end = -1, None, 0, 0
    for word, (start, end) in zip(word_ids, offsets, strict=True):
        if word is None:
            numbers.append(-1)
            continue
        after_space = any(character.isspace() for character in text[last_end : start + 1])
        beside_ideograph = bool(IDEOGRAPH.match(text, start) or IDEOGRAPH.match(text, last_end - 1))
        goes_on = start < last_end or (start == last_end and text[last_start:last_end].isspace())
        current += current < 0 or (
            not goes_on and (word != previous or after_space or beside_ideograph)
        )
        previous, last_start, last_end = word, start, end
        numbers.append(current)
    return numbers


@given(
    st.text(alphabet="ab \t,\u3000\u200b春来𠀁", max_size=12),
    st.lists(
        st.tuples(
            st.sampled_from([-2, -1, 0, 0, 0, 1]), st.integers(0, 3), st.sampled_from([None, 0, 1])
        ),
        max_size=9,
    ),
)
def test_words_of_all_tokens_at_once_are_those_of_one_after_the_other(
    text: str, tokens: list[tuple[int, int, int | None]]
) -> None:
    word_ids: list[int | None] = []
    offsets: list[tuple[int, int]] = []
    at = word = 0
    for gap, length, step in tokens:
        start = min(len(text), max(0, at + gap))
        at, word = min(len(text), start + length), word + (step or 0)
        word_ids.append(None if step is None else word)
        offsets.append((0, 0) if step is None else (start, at))
    assert word_numbers(text, word_ids, offsets) == one_by_one(text, word_ids, offsets)


@pytest.mark.parametrize("whole_words", [False, True])
def test_a_piece_is_masked_alike_in_any_company(tiny: Any, whole_words: bool) -> None:
    task, data = encoded(tiny, "wordpiece", whole_words=whole_words)
    pieces = [piece for number in range(6) for piece in data.example(number)]

    def of(batch: dict[str, Any], row: int) -> tuple[list[int], list[int]]:
        length = pieces[2]["length"]
        return batch.inputs["input_ids"][row, :length].tolist(), batch.labels[row, :length].tolist()

    alone = of(task.collate([[pieces[2]]], epoch=1), 0)
    assert of(task.collate([[piece] for piece in pieces], epoch=1), 2) == alone
    assert of(task.collate([[pieces[4]], [pieces[2]]], epoch=1), 1) == alone
    packed = task.collate([[pieces[4], pieces[2]]], epoch=1, packed=True)
    start = pieces[4]["length"]
    assert packed.labels[0, start : start + len(alone[1])].tolist() == alone[1]


def test_each_epoch_each_piece_and_each_seed_has_a_mask_of_its_own(tiny: Any) -> None:
    task, data = encoded(tiny, "wordpiece")
    piece = data.example(1)[0]

    def labels(piece: dict[str, Any], **options: Any) -> list[int]:
        found: list[int] = task.collate([[piece]], **options).labels[0].tolist()
        return found

    assert labels(piece, epoch=0) == labels(piece, epoch=0)
    assert labels(piece, epoch=0) != labels(piece, epoch=1)
    assert labels(piece, epoch=0) != labels(piece | {"piece": piece["piece"] + 1}, epoch=0)
    other = task.problem.task(
        task.recipe.model_copy(update={"seed": 14}), task.facts, task.tokenizer
    )
    assert labels(piece, epoch=0) != other.collate([[piece]], epoch=0).labels[0].tolist()
    # evaluation is the same every time, and unlike training
    assert labels(piece) == labels(piece)
    assert labels(piece) != labels(piece, epoch=0)


def test_no_token_is_lost_where_a_document_is_cut(tiny: Any) -> None:
    task, _ = encoded(tiny, "wordpiece")
    text = " ".join([THIRTEEN] * 20)
    columns = task.encode([{"id": 0, "text": text}, {"id": 1, "text": "short"}])
    assert set(columns["row"]) == {0, 1}
    assert max(columns["length"]) == 128
    parts = [
        ids[1:-1] for ids, row in zip(columns["input_ids"], columns["row"], strict=True) if row == 0
    ]
    assert (
        list(chain.from_iterable(parts))
        == task.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    )


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_tokens_and_words_are_chosen_with_the_share(share: float) -> None:
    words = np.repeat(np.arange(20_000), 2)
    words[::10] = -1
    for whole_words in (False, True):
        chosen = choose(words, share, whole_words=whole_words, rng=np.random.default_rng(0))
        assert chosen[words >= 0].mean() == pytest.approx(share, abs=0.01)
        assert not chosen[words < 0].any()
