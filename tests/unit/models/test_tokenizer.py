"""Tokenizers learned from a few texts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from lmkit.data.sources import SAMPLES
from lmkit.errors import ModelError, RecipeError
from lmkit.models.tokenizer import (
    add_tokens,
    for_words,
    load_tokenizer,
    pieces_of,
    tokenizer_hash,
)
from lmkit.models.tokenizer_training import train_tokenizer
from lmkit.recipe.schema import TokenizerTraining

ALGORITHMS = ("wordpiece", "bpe", "unigram")
ROLES = (
    "encoder", "decoder", "encoder-decoder", "encoder-decoder with sentinels", "encoder-decoder with a mask",
)  # fmt: skip
ENGLISH = "Call me Ishmael. Some years ago—never mind how long precisely—having 25 dollars, I thought I would sail."
SPANISH = "El café estará listo; ¿dónde está el ñandú?"
CHINESE = "烛影摇红：吾菊山翁，鹤骖来自蓬云界。"


def lines(name: str, number: int) -> list[str]:
    with gzip.open(SAMPLES / name, "rt", encoding="utf-8") as file:
        return [next(file).strip() for _ in range(number)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [
        *lines("mobydick_en/train.txt.gz", 20),
        *lines("songci_zh/train.txt.gz", 5),
        ENGLISH,
        SPANISH,
        CHINESE,
    ]


def learned(
    texts: list[str], algorithm: Any, role: Any = "encoder", size: int = 1500, **options: Any
) -> Any:
    return train_tokenizer(
        lambda: texts,
        TokenizerTraining(algorithm=algorithm, vocab_size=size, **options),
        role=role,
        max_length=128,
    )


@pytest.mark.parametrize("text", [ENGLISH, SPANISH, CHINESE, f"{CHINESE} in {ENGLISH}"])
@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_text_comes_back_as_it_was(texts: list[str], algorithm: str, text: str) -> None:
    tokenizer = learned(texts, algorithm)
    back = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    assert back == (
        text if algorithm == "bpe" else text.translate(str.maketrans("：，；？", ":,;?"))
    )  # NFKC


@pytest.mark.parametrize("text", [ENGLISH, SPANISH, CHINESE])
def test_wordpiece_brings_every_letter_back(texts: list[str], text: str) -> None:
    tokenizer = learned(texts, "wordpiece")
    back = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    assert back.replace(" ", "") == text.replace(" ", "")


def test_bytes_know_every_text(texts: list[str]) -> None:
    tokenizer = learned(["plain"], "bpe", size=300)
    for text in (CHINESE, "Ω≈ç√∫ 🐋", "tabs\tand  spaces"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_lower_case_is_asked_for(texts: list[str], algorithm: str) -> None:
    small = learned(texts, algorithm, lowercase=True)
    assert small("CALL Me")["input_ids"] == small("call me")["input_ids"]
    large = learned(texts, algorithm)
    assert large("CALL Me")["input_ids"] != large("call me")["input_ids"]


def test_a_unigram_word_carries_its_space_and_ends_at_punctuation(texts: list[str]) -> None:
    """tokenizers' UnicodeScripts parts every space from its word: a third more tokens."""
    tokenizer = learned(texts, "unigram")
    tokens = tokenizer.convert_ids_to_tokens(
        tokenizer("I thought I would sail, 25", add_special_tokens=False)["input_ids"]
    )
    assert tokens.count("▁I") == 2
    assert "".join(tokens[-3:]).endswith("▁25")
    assert not any("▁" in token[1:] or ("," in token and len(token) > 1) for token in tokens)
    assert len(tokenizer(ENGLISH)["input_ids"]) < 50


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_role_has_its_marks(texts: list[str], algorithm: str, role: Any) -> None:
    tokenizer = learned(texts, algorithm, role)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"])
    body = [token for token in tokens if token not in tokenizer.all_special_tokens]
    assert tokens == {"encoder": ["[CLS]", *body, "[SEP]"], "decoder": body}.get(
        role, [*body, "</s>"]
    )
    assert "".join(body).strip("Ġ▁") == "a"
    assert tokenizer.pad_token_id == 0
    assert (tokenizer.mask_token_id is not None) == (
        role in ("encoder", "encoder-decoder with a mask")
    )
    assert ("<extra_id_99>" in tokenizer.get_vocab()) == (role == "encoder-decoder with sentinels")
    assert len(tokenizer) <= 1500


def test_pairs_are_told_apart(texts: list[str]) -> None:
    tokenizer = learned(texts, "wordpiece")
    pair = tokenizer("a", "b")
    assert tokenizer.convert_ids_to_tokens(pair["input_ids"]) == [
        "[CLS]",
        "a",
        "[SEP]",
        "b",
        "[SEP]",
    ]
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(("role", "mark"), [(ROLES[3], "<extra_id_7>"), (ROLES[4], "<mask>")])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_gap_is_one_token_and_no_stray_space_stays_beside_it(
    texts: list[str], algorithm: str, role: Any, mark: str, tmp_path: Path
) -> None:
    learned(texts, algorithm, role).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    ids, call, ishmael = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (f"Call {mark} Ishmael. {mark}", "Call", "Ishmael.")
    )
    gap = tokenizer.convert_tokens_to_ids(mark)
    assert ids == [*call, gap, *ishmael, gap]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Call Ishmael."


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_texts_teach_the_same_tokenizer_which_loads_as_it_was(
    texts: list[str], algorithm: str, tmp_path: Path
) -> None:
    tokenizer = learned(texts, algorithm)
    assert tokenizer_hash(learned(texts, algorithm)) == tokenizer_hash(tokenizer)
    assert tokenizer_hash(learned(texts, algorithm, size=1000)) != tokenizer_hash(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)
    for text in (ENGLISH, CHINESE):
        assert loaded(text) == tokenizer(text)
    assert (
        for_words(loaded, str(tmp_path))([["in", "春"]], is_split_into_words=True).word_ids(0)[-2]
        == 1
    )


@pytest.mark.parametrize("known", [True, False])
def test_words_of_a_list_are_read_as_in_a_text(
    texts: list[str], known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RoBERTa's tokenizer and, whose class knows no ``add_prefix_space``, ModernBERT's; loaded from the same revision."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

    backend = learned(texts, "bpe").backend_tokenizer
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    plain = (
        RobertaTokenizer(vocab=model["vocab"], merges=merges)
        if known
        else PreTrainedTokenizerFast(tokenizer_object=backend)
    )
    plain.save_pretrained(tmp_path)
    asked: list[Any] = []
    load = AutoTokenizer.from_pretrained

    def from_pretrained(
        source: str, *, revision: str, trust_remote_code: bool, **options: Any
    ) -> Any:
        asked.append((revision, trust_remote_code))
        return load(source, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    spaced = for_words(plain, str(tmp_path), revision="v2", trust_remote_code=True)
    assert asked == [("v2", True)]
    read = spaced([["in", "the", "sea"]], is_split_into_words=True, add_special_tokens=False)[
        "input_ids"
    ][0]
    assert read == plain(" in the sea", add_special_tokens=False)["input_ids"]
    assert for_words(spaced, str(tmp_path)) is spaced
    spaced.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert (
        again([["in", "the", "sea"]], is_split_into_words=True, add_special_tokens=False)[
            "input_ids"
        ][0]
        == read
    )


def test_a_folder_without_a_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_fails_at_unknown_words_is_refused_before_one_comes(
    tmp_path: Path,
) -> None:
    words = Tokenizer(WordPiece({"[PAD]": 0, "a": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"fails at a letter that it does not know: .*\[UNK\]"):
        load_tokenizer(str(tmp_path))


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(ModelError, match="the texts are too few to learn a tokenizer from"):
        learned([""], "wordpiece")


def test_more_letters_than_pieces_are_said() -> None:
    with pytest.raises(
        ModelError,
        match=r"tokenizer\.train\.vocab_size: 64 pieces do not hold every letter of the texts",
    ):
        learned([chr(0x4E00 + number) for number in range(200)], "unigram", size=64)


# ---------------------------------------------------------------------------------- added tokens


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_added_tokens_are_one_token_each_and_another_tokenizer(
    texts: list[str], algorithm: str
) -> None:
    tokenizer, text = learned(texts, algorithm), "Call me Zaphod<e1>."
    before, hash_before, size = (
        tokenizer(text, add_special_tokens=False)["input_ids"],
        tokenizer_hash(tokenizer),
        len(tokenizer),
    )
    expected = {
        size + i: tokenizer(each, add_special_tokens=False)["input_ids"]
        for i, each in enumerate(("Zaphod", "<e1>"))
    }
    add_tokens(tokenizer, ["Zaphod", "<e1>"])
    after = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [token for token in after if token >= size] == [size, size + 1]
    assert len(after) < len(before)
    assert (
        tokenizer_hash(tokenizer) != hash_before
    )  # so tokens are cached apart, and another run is not gone on with
    assert pieces_of(tokenizer, [size, size + 1]) == expected


def test_a_token_that_is_there_already_is_refused(texts: list[str]) -> None:
    tokenizer = learned(texts, "wordpiece")
    with pytest.raises(
        RecipeError, match=r"tokenizer\.add_tokens: '\[MASK\]' is a token of this tokenizer already"
    ):
        add_tokens(tokenizer, ["[MASK]"])
    with pytest.raises(RecipeError, match="'Zaphod' is a token of this tokenizer already"):
        add_tokens(tokenizer, ["Zaphod", "Zaphod"])


def test_a_token_that_would_never_come_out_is_refused(texts: list[str]) -> None:
    tokenizer = learned(texts, "wordpiece", lowercase=True)
    with pytest.raises(RecipeError, match=r"'Z.*' would never be read as one token"):
        add_tokens(tokenizer, ["Zaphod", "ZAPHOD"])  # both are "zaphod" to this tokenizer
