"""Tokenizers: trained on the data, or loaded from a run, a directory or the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import string
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmkit.errors import ModelError, RecipeError
from lmkit.recipe.schema import TokenizerTraining
from lmkit.tasks.languages import TARGET, target_of

if TYPE_CHECKING:
    from tokenizers import AddedToken
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
UNKNOWN = "𐎀"  # a letter (Ugaritic) that next to no vocabulary has
NUM_SENTINELS = 100  # as T5 has them
# What a unigram piece cannot cross: letters, ideographs and kana, single digits, the rest; each with the space before it.
# (tokenizers' UnicodeScripts would part the space from the word: a third more tokens.)
_EASTERN = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
UNIGRAM_RUNS = (
    rf"▁?(?:[{_EASTERN}]+|[[\p{{L}}\p{{M}}]&&[^{_EASTERN}]]+|\p{{N}}|[^\p{{L}}\p{{M}}\p{{N}}▁]+)"
)


def train_tokenizer(
    texts: Callable[[], Iterable[str]], options: TokenizerTraining, *, role: Role, max_length: int
) -> PreTrainedTokenizerBase:
    """Learn a tokenizer from texts: from the same texts, the same.

    Args:
        texts: gives the texts from the beginning, each time it is called.
        role: which special tokens it gets: [CLS] ... [SEP] around the texts of encoders, </s> after
            those of encoder-decoders, none around those of decoders (documents get <s> and </s> as blocks are cut);
            encoder-decoders that learn by denoising, besides, marks of gaps: <extra_id_0> ... (T5), or <mask> (BART).

    Raises:
        ModelError: the texts hold too little to reach more than the single characters.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    # a gap takes the space before it along, which is written with what fills it
    gaps = {
        token: AddedToken(token, special=True, normalized=False, lstrip=True)
        for token in ("<mask>", *(f"<extra_id_{number}>" for number in range(NUM_SENTINELS)))
    }
    sentinels = list(gaps.values())[1:] if role == "encoder-decoder with sentinels" else []
    special = {name: gaps.get(token, token) for name, token in SPECIAL[role].items()}
    marks = [*special.values(), *sentinels]
    trainer_options: dict[str, Any] = {
        "vocab_size": options.vocab_size,
        "special_tokens": list(marks),
        "show_progress": False,
    }
    tokenizer, trainer = _untrained(texts, options, SPECIAL[role]["unk_token"], trainer_options)
    try:
        tokenizer.train_from_iterator(texts(), trainer)
    except Exception as error:  # tokenizers knows no other class
        if "not large enough" not in str(error):
            raise
        raise ModelError(
            f"{options.vocab_size} pieces do not hold every letter of the texts",
            place="tokenizer.train.vocab_size",
            remedy="raise it, or take algorithm: bpe, which writes rare letters as bytes",
        ) from None
    if options.algorithm != "bpe":
        tokenizer = _settled(tokenizer, marks)
    if tokenizer.get_vocab_size() <= len(marks):
        raise ModelError(
            "the texts are too few to learn a tokenizer from",
            place="tokenizer.train",
            remedy="give more text, or tokenizer.base",
        )
    _frame_texts(tokenizer, role)
    extra: dict[str, Any] = {"add_prefix_space": True} if options.algorithm == "bpe" else {}
    if sentinels:
        extra["extra_special_tokens"] = sentinels
    names = (
        ["input_ids", "token_type_ids", "attention_mask"]
        if role == "encoder"
        else ["input_ids", "attention_mask"]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=names,
        clean_up_tokenization_spaces=False,
        **special,
        **extra,
    )


def _untrained(
    texts: Callable[[], Iterable[str]],
    options: TokenizerTraining,
    unknown: str | None,
    trainer_options: dict[str, Any],
) -> tuple[Any, Any]:
    """Make a tokenizer of the algorithm that is asked for, and its trainer."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    if options.algorithm == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown, max_input_chars_per_word=100))
        tokenizer.normalizer = normalizers.BertNormalizer(
            lowercase=options.lowercase, strip_accents=options.lowercase or None
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(prefix="##")
        trainer_options["special_tokens"] += [
            f"##{letter}" for letter in _continuing(texts(), tokenizer.normalizer)
        ]
        trainer: Any = trainers.WordPieceTrainer(**trainer_options)
    elif options.algorithm == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token=None))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), *([normalizers.Lowercase()] if options.lowercase else [])]
        )
        # a space before the first word too, so that a word is the same token wherever it stands
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        trainer = trainers.BpeTrainer(
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **trainer_options
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), *([normalizers.Lowercase()] if options.lowercase else [])]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(UNIGRAM_RUNS), "isolated")]
        )
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=unknown, **trainer_options)
    return tokenizer, trainer


def _frame_texts(tokenizer: Any, role: Role) -> None:
    """Let the tokenizer put special tokens around texts, as its role asks."""
    from tokenizers import processors

    identity = {
        name: (token, tokenizer.token_to_id(token)) for name, token in SPECIAL[role].items()
    }
    if role == "encoder":
        cls, sep = identity["cls_token"], identity["sep_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls[0]} $A {sep[0]}",
            pair=f"{cls[0]} $A {sep[0]} $B:1 {sep[0]}:1",
            special_tokens=[cls, sep],
        )
    elif role != "decoder":
        end = identity["eos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end[0]}", pair=f"$A {end[0]} $B {end[0]}", special_tokens=[end]
        )


def _continuing(texts: Iterable[str], normalizer: Any) -> list[str]:
    """The letters that go on a word of BERT's, sorted: the trainer would number them in the order of a hash map."""
    pairs: set[tuple[str, str]] = set()
    for text in texts:
        normal = normalizer.normalize_str(text)
        pairs.update(itertools.pairwise(normal))

    def parts(letter: str) -> bool:
        return (
            letter.isspace()
            or letter in string.punctuation
            or unicodedata.category(letter).startswith("P")
        )

    return sorted({second for first, second in pairs if not parts(first) and not parts(second)})


def _settled(tokenizer: Any, marks: Sequence[str | AddedToken]) -> Any:
    """The same tokenizer without what the trainer leaves to chance.

    WordPiece: the letters that were named to the trainer are not special. Unigram: scores are sums in the order of
    a hash map, and letters without a score of their own have the lowest one plus 1e-4, 2e-4, ... in such an order.
    """
    from tokenizers import Tokenizer, models

    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] == "WordPiece":
        settled = Tokenizer(
            models.WordPiece(
                model["vocab"], unk_token=model["unk_token"], max_input_chars_per_word=100
            )
        )
    else:
        scores = {token: round(score, 6) for token, score in model["vocab"][len(marks) :]}
        lowest = min(scores.values(), default=0.0)
        steps = {
            token: (score - lowest) * 1e4 for token, score in scores.items() if len(token) == 1
        }
        made_up = sorted(token for token, step in steps.items() if abs(step - round(step)) < 0.02)
        scores |= dict(
            zip(made_up, sorted((scores[token] for token in made_up), reverse=True), strict=True)
        )
        learned = sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))
        settled = Tokenizer(
            models.Unigram([(str(token), 0.0) for token in marks] + learned, model["unk_id"], False)
        )
    settled.normalizer, settled.pre_tokenizer, settled.decoder = (
        tokenizer.normalizer,
        tokenizer.pre_tokenizer,
        tokenizer.decoder,
    )
    settled.add_special_tokens(list(marks))
    return settled


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer, and the target's where it has one."""
    tokenizer.save_pretrained(folder)
    if target_of(tokenizer) is not tokenizer:
        target_of(tokenizer).save_pretrained(folder / TARGET)


def num_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that the embeddings need: M2M-100's language tokens stand behind its vocabulary, and are not counted in it."""
    return max(len(tokenizer), 1 + max(getattr(tokenizer, "id_to_lang_token", {}), default=-1))


def load_tokenizer(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False, slow: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub id, with a padding token.

    Args:
        slow: one that knows no character offsets will do.

    Raises:
        ModelError: none is there, or it is not a fast one.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        package = (
            "sentencepiece" in str(error).lower()
            and importlib.util.find_spec("sentencepiece") is None
        )
        raise ModelError(
            "this tokenizer needs the package sentencepiece"
            if package
            else f"no tokenizer could be loaded: {_first_line(error)}",
            place=source,
            remedy="pip install sentencepiece"
            if package
            else "give tokenizer.base, or tokenizer.train to learn one from the data",
        ) from None
    if not tokenizer.is_fast and not slow:
        raise ModelError(
            "this tokenizer is a slow one, without character offsets",
            place=source,
            remedy="convert it with transformers to a tokenizer.json",
        )
    if not len(tokenizer.get_vocab()):
        raise ModelError(
            "this tokenizer has an empty vocabulary",
            place=source,
            remedy="are all its files there? or give tokenizer.base",
        )
    try:
        if tokenizer.is_fast:
            tokenizer.backend_tokenizer.encode(UNKNOWN)
    except Exception as error:  # the tokenizers library has no kind of its own
        raise ModelError(
            f"this tokenizer fails at a letter that it does not know: {_first_line(error)}",
            place=source,
            remedy="put its token for unknown words into its vocabulary, or give another tokenizer.base",
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "this tokenizer has neither a padding nor an end token",
            place=source,
            remedy="give another tokenizer.base",
        )
    if (Path(source) / TARGET).is_dir():
        setattr(tokenizer, TARGET, load_tokenizer(str(Path(source) / TARGET)))
    return tokenizer


def for_words(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """A tokenizer that reads the words of a list as it reads them in a text: byte-level ones need a space before each.

    Without it RoBERTa, GPT-2 and their kin, where they do not refuse, take all words for the continuation of one.

    Args:
        source, revision, trust_remote_code: where and how it was loaded.
    """
    from transformers import AutoTokenizer

    if _reads_words(tokenizer):
        return tokenizer
    spaced = AutoTokenizer.from_pretrained(
        source,
        revision=revision or "main",
        trust_remote_code=trust_remote_code,
        add_prefix_space=True,
    )
    spaced.pad_token = spaced.pad_token or tokenizer.pad_token
    if not _reads_words(spaced):  # ModernBERT's class does not know the option
        _space_first(spaced)
    return spaced


def _reads_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        words = tokenizer([["a", "b"]], is_split_into_words=True, add_special_tokens=False)[
            "input_ids"
        ][0]
    except (AssertionError, ValueError):
        return False
    return bool(words == tokenizer("a b", add_special_tokens=False)["input_ids"])


def _space_first(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if (state["pre_tokenizer"] or {}).get("type") == "ByteLevel":
        state["pre_tokenizer"]["add_prefix_space"] = True
        tokenizer.backend_tokenizer.pre_tokenizer = Tokenizer.from_str(
            json.dumps(state)
        ).pre_tokenizer


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Make each of the texts one token, in place, as ``add_tokens`` of transformers does.

    Raises:
        RecipeError: one is a token already, or would never come out.
    """
    known, place = set(tokenizer.get_vocab()), "tokenizer.add_tokens"
    for token in tokens:
        if token in known:
            raise RecipeError(
                f"{token!r} is a token of this tokenizer already",
                place=place,
                remedy="leave it out",
            )
        known.add(token)
    tokenizer.add_tokens(list(tokens))
    for token in tokens:
        ids = tokenizer(token, add_special_tokens=False, verbose=False)["input_ids"]
        if tokenizer.convert_tokens_to_ids(token) not in ids:
            read = tokenizer.convert_ids_to_tokens(ids)
            raise RecipeError(
                f"{token!r} would never be read as one token, but as {read}",
                place=place,
                remedy="leave it out, or spell it otherwise",
            )


def pieces_of(tokenizer: PreTrainedTokenizerBase, new: Sequence[int]) -> dict[int, list[int]]:
    """New token -> the tokens its text is read as where none of the new ones is known."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    added, dropped = {entry["id"]: entry["content"] for entry in state["added_tokens"]}, set(new)
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["id"] not in dropped]
    before = Tokenizer.from_str(json.dumps(state))
    return {
        token: [
            piece
            for piece in before.encode(added[token], add_special_tokens=False).ids
            if piece not in dropped
        ]
        for token in new
        if token in added
    }


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of everything that decides how text becomes tokens."""
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        # what the last call asked for stays in there, and is no property of the tokenizer
        content: list[Any] = [
            {key: value for key, value in backend.items() if key not in ("truncation", "padding")},
            special,
        ]
    else:
        content = [type(tokenizer).__name__, _vocabulary_files(tokenizer), special]
    if target_of(tokenizer) is not tokenizer:
        content.append(tokenizer_hash(target_of(tokenizer)))
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _vocabulary_files(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """sha256 of each file that a slow tokenizer is made of."""
    with tempfile.TemporaryDirectory(prefix="lmkit-") as folder:
        tokenizer.save_vocabulary(folder)
        return [
            hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())
        ]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
