"""Tokenizers learned from the data: from the same texts, the same."""

from __future__ import annotations

import itertools
import json
import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lmkit.errors import ModelError
from lmkit.recipe.schema import TokenizerTraining

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerBase

Role = Literal[
    "encoder",
    "decoder",
    "encoder-decoder",
    "encoder-decoder with sentinels",
    "encoder-decoder with a mask",
]
SPECIAL: dict[Role, dict[str, str]] = {
    "encoder": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    "decoder": {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    },
    "encoder-decoder": {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"},
    "encoder-decoder with sentinels": {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "eos_token": "</s>",
    },
    "encoder-decoder with a mask": {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "eos_token": "</s>",
        "mask_token": "<mask>",
    },
}
NUM_SENTINELS = 100  # as T5 has them
# A unigram piece stays within one of these: letters, ideographs and kana, single digits, the rest; each with the space before it.
# (tokenizers' UnicodeScripts would part the space from the word: a third more tokens.)
_EASTERN = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
UNIGRAM_RUNS = (
    rf"▁?(?:[{_EASTERN}]+|[[\p{{L}}\p{{M}}]&&[^{_EASTERN}]]+|\p{{N}}|[^\p{{L}}\p{{M}}\p{{N}}▁]+)"
)


@dataclass(frozen=True)
class Lesson:
    """All that a tokenizer is learned from.

    Args:
        texts: gives the texts from the beginning, each time it is called.
        options: ``tokenizer.train`` of a recipe.
        unknown: the token for what the vocabulary lacks.
        marks: the special tokens, first in the vocabulary.
    """

    texts: Callable[[], Iterable[str]]
    options: TokenizerTraining
    unknown: str
    marks: Sequence[str | AddedToken]

    def trainer_options(self, special: Sequence[str] = ()) -> dict[str, Any]:
        """Return what all trainers take; ``special`` are more tokens that are not learned."""
        return {
            "vocab_size": self.options.vocab_size,
            "special_tokens": [*self.marks, *special],
            "show_progress": False,
        }


def train_tokenizer(
    texts: Callable[[], Iterable[str]], options: TokenizerTraining, *, role: Role, max_length: int
) -> PreTrainedTokenizerBase:
    """Learn a tokenizer from texts.

    Args:
        texts: gives the texts from the beginning, each time it is called.
        role: which special tokens it gets: [CLS] ... [SEP] around the texts of encoders, </s> after
            those of encoder-decoders, none around those of decoders (documents get <s> and </s> as blocks are cut);
            encoder-decoders that learn by denoising, besides, marks of gaps: <extra_id_0> ... (T5), or <mask> (BART).

    Raises:
        ModelError: the texts hold too little to reach more than the single characters.
    """
    from transformers import PreTrainedTokenizerFast

    special, sentinels = _special_tokens(role)
    marks = [*special.values(), *sentinels]
    lesson = Lesson(texts, options, SPECIAL[role]["unk_token"], marks)
    tokenizer = _learn(lesson)
    if tokenizer.get_vocab_size() <= len(marks):
        raise ModelError(
            "the texts are too few to learn a tokenizer from",
            place="tokenizer.train",
            remedy="give more text, or tokenizer.base",
        )
    if role != "decoder":
        tokenizer.post_processor = _template(tokenizer, role)
    extra: dict[str, Any] = {}
    if options.algorithm == "bpe":
        extra["add_prefix_space"] = True
    if sentinels:
        extra["extra_special_tokens"] = sentinels
    names = ["input_ids", "attention_mask"]
    if role == "encoder":
        names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=names,
        clean_up_tokenization_spaces=False,
        **special,
        **extra,
    )


def _special_tokens(role: Role) -> tuple[dict[str, str | AddedToken], list[AddedToken]]:
    """Return the special tokens by name, and the sentinels."""
    special: dict[str, str | AddedToken] = dict(SPECIAL[role])
    if "mask_token" in special and role != "encoder":
        special["mask_token"] = _gap(SPECIAL[role]["mask_token"])
    sentinels = []
    if role == "encoder-decoder with sentinels":
        sentinels = [_gap(f"<extra_id_{number}>") for number in range(NUM_SENTINELS)]
    return special, sentinels


def _gap(token: str) -> AddedToken:
    """Make the mark of a gap, which takes the space before it along: that is written with what fills the gap."""
    from tokenizers import AddedToken

    return AddedToken(token, special=True, normalized=False, lstrip=True)


def _learn(lesson: Lesson) -> Any:
    """Return a tokenizer that has learned its vocabulary."""
    tokenizer, trainer = ALGORITHMS[lesson.options.algorithm](lesson)
    try:
        tokenizer.train_from_iterator(lesson.texts(), trainer)
    except Exception as error:  # tokenizers knows no other class
        if "not large enough" not in str(error):
            raise
        raise ModelError(
            f"{lesson.options.vocab_size} pieces do not hold every letter of the texts",
            place="tokenizer.train.vocab_size",
            remedy="raise it, or take algorithm: bpe, which writes rare letters as bytes",
        ) from None
    if lesson.options.algorithm == "bpe":
        return tokenizer
    return _settled(tokenizer, lesson.marks)


def _wordpiece(lesson: Lesson) -> tuple[Any, Any]:
    """Make an empty WordPiece tokenizer as BERT's, and its trainer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    lowercase = lesson.options.lowercase
    model = models.WordPiece(unk_token=lesson.unknown, max_input_chars_per_word=100)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=lowercase or None
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    letters = _continuing(lesson.texts(), tokenizer.normalizer)
    options = lesson.trainer_options([f"##{letter}" for letter in letters])
    return tokenizer, trainers.WordPieceTrainer(**options)


def _bpe(lesson: Lesson) -> tuple[Any, Any]:
    """Make an empty tokenizer of byte pairs, and its trainer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = _normalizer(normalizers.NFC(), lesson)
    # a space before the first word too, so that a word is the same token wherever it stands
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(initial_alphabet=alphabet, **lesson.trainer_options())


def _unigram(lesson: Lesson) -> tuple[Any, Any]:
    """Make an empty unigram tokenizer, and its trainer."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = _normalizer(normalizers.NFKC(), lesson)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(UNIGRAM_RUNS), "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(unk_token=lesson.unknown, **lesson.trainer_options())


ALGORITHMS: dict[str, Callable[[Lesson], tuple[Any, Any]]] = {
    "wordpiece": _wordpiece,
    "bpe": _bpe,
    "unigram": _unigram,
}


def _normalizer(form: Any, lesson: Lesson) -> Any:
    """Return a normalizer that writes a form of Unicode, and lower case where the recipe says so."""
    from tokenizers import normalizers

    if lesson.options.lowercase:
        return normalizers.Sequence([form, normalizers.Lowercase()])
    return normalizers.Sequence([form])


def _template(tokenizer: Any, role: Role) -> TemplateProcessing:
    """Return what puts special tokens around a text and a pair of texts."""
    from tokenizers import processors

    if role == "encoder":
        cls, sep = SPECIAL[role]["cls_token"], SPECIAL[role]["sep_token"]
        return processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(cls, tokenizer.token_to_id(cls)), (sep, tokenizer.token_to_id(sep))],
        )
    end = SPECIAL[role]["eos_token"]
    return processors.TemplateProcessing(
        single=f"$A {end}",
        pair=f"$A {end} $B {end}",
        special_tokens=[(end, tokenizer.token_to_id(end))],
    )


def _continuing(texts: Iterable[str], normalizer: Any) -> list[str]:
    """Return the letters that go on a word of BERT's, sorted: the trainer would number them in the order of a hash map."""
    pairs: set[tuple[str, str]] = set()
    for text in texts:
        pairs.update(itertools.pairwise(normalizer.normalize_str(text)))
    return sorted({second for first, second in pairs if not (_parts(first) or _parts(second))})


def _parts(letter: str) -> bool:
    """Tell if a letter stands between words."""
    return (
        letter.isspace()
        or letter in string.punctuation
        or unicodedata.category(letter).startswith("P")
    )


def _settled(tokenizer: Any, marks: Sequence[str | AddedToken]) -> Any:
    """Return the same tokenizer without what the trainer leaves to chance.

    WordPiece: the letters that were named to the trainer are not special. Unigram: scores are sums in the order of
    a hash map, and letters without a score of their own have the lowest one plus 1e-4, 2e-4, ... in such an order.
    """
    from tokenizers import Tokenizer, models

    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] == "WordPiece":
        vocabulary, unknown = model["vocab"], model["unk_token"]
        settled = Tokenizer(
            models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100)
        )
    else:
        pieces = [(str(token), 0.0) for token in marks]
        pieces += _settled_scores(model["vocab"][len(marks) :])
        settled = Tokenizer(models.Unigram(pieces, model["unk_id"], False))
    settled.normalizer = tokenizer.normalizer
    settled.pre_tokenizer = tokenizer.pre_tokenizer
    settled.decoder = tokenizer.decoder
    settled.add_special_tokens(list(marks))
    return settled


def _settled_scores(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return unigram pieces by score, and alphabetically among equals, as the texts alone decide."""
    scores = {token: round(score, 6) for token, score in pieces}
    lowest = min(scores.values(), default=0.0)
    made_up = []  # letters without a score of their own
    for token, score in scores.items():
        steps = (score - lowest) * 1e4
        if len(token) == 1 and abs(steps - round(steps)) < 0.02:
            made_up.append(token)
    values = sorted((scores[token] for token in made_up), reverse=True)
    scores |= dict(zip(sorted(made_up), values, strict=True))
    return sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))
