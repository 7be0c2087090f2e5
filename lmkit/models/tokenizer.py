"""Tokenizers: loaded from a run, a directory or the hub, extended, saved and told apart."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit.errors import ModelError, RecipeError
from lmkit.tasks.languages import TARGET, target_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN = "𐎀"  # a letter (Ugaritic) that next to no vocabulary has
# of transformers, about files that are missing or hold something else
LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer, and the target's where it has one."""
    tokenizer.save_pretrained(folder)
    if target_of(tokenizer) is not tokenizer:
        target_of(tokenizer).save_pretrained(folder / TARGET)


def num_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the rows that the embeddings need.

    M2M-100's language tokens stand behind its vocabulary, and are not counted in it.
    """
    return max(len(tokenizer), 1 + max(getattr(tokenizer, "id_to_lang_token", {}), default=-1))


def load_tokenizer(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False, slow: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory or hub id, with a padding token.

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
    except LOADING_ERRORS as error:
        raise _not_loaded(source, error) from None
    if not tokenizer.is_fast and not slow:
        raise _is_slow(source)
    if not tokenizer.get_vocab():
        raise _is_empty(source)
    if tokenizer.is_fast:
        _check_unknown(tokenizer, source)
    if tokenizer.pad_token_id is None:
        _choose_padding(tokenizer, source)
    if (Path(source) / TARGET).is_dir():
        setattr(tokenizer, TARGET, load_tokenizer(str(Path(source) / TARGET)))
    return tokenizer


def _not_loaded(source: str, error: Exception) -> ModelError:
    is_missing = importlib.util.find_spec("sentencepiece") is None
    if is_missing and "sentencepiece" in str(error).lower():
        return ModelError(
            "this tokenizer needs the package sentencepiece",
            place=source,
            remedy="pip install sentencepiece",
        )
    return ModelError(
        f"no tokenizer could be loaded: {_first_line(error)}",
        place=source,
        remedy="give tokenizer.base, or tokenizer.train to learn one from the data",
    )


def _is_slow(source: str) -> ModelError:
    return ModelError(
        "this tokenizer is a slow one, without character offsets",
        place=source,
        remedy="convert it with transformers to a tokenizer.json",
    )


def _is_empty(source: str) -> ModelError:
    return ModelError(
        "this tokenizer has an empty vocabulary",
        place=source,
        remedy="are all its files there? or give tokenizer.base",
    )


def _check_unknown(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Refuse a tokenizer that fails at a letter outside its vocabulary."""
    try:
        tokenizer.backend_tokenizer.encode(UNKNOWN)
    except Exception as error:  # the tokenizers library has no kind of its own
        raise _knows_no_unknown(source, error) from None


def _knows_no_unknown(source: str, error: Exception) -> ModelError:
    return ModelError(
        f"this tokenizer fails at a letter that it does not know: {_first_line(error)}",
        place=source,
        remedy="put its token for unknown words into its vocabulary, or give another tokenizer.base",
    )


def _choose_padding(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Pad with the end token, or with the one for unknown words, where the tokenizer has no token for it."""
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "this tokenizer has neither a padding nor an end token",
            place=source,
            remedy="give another tokenizer.base",
        )


def for_words(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Return a tokenizer that reads the words of a list as it reads them in a text: byte-level ones need a space before each.

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
    """Tell if the words of a list become the tokens that they are in a text."""
    words = [["a", "b"]]
    try:
        listed = tokenizer(words, is_split_into_words=True, add_special_tokens=False)
    except (AssertionError, ValueError):
        return False
    written = tokenizer("a b", add_special_tokens=False)
    return bool(listed["input_ids"][0] == written["input_ids"])


def _space_first(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a byte-level tokenizer put a space before the first word, in place."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if (state["pre_tokenizer"] or {}).get("type") == "ByteLevel":
        state["pre_tokenizer"]["add_prefix_space"] = True
        spaced = Tokenizer.from_str(json.dumps(state))
        tokenizer.backend_tokenizer.pre_tokenizer = spaced.pre_tokenizer


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Make each of the texts one token, in place, as ``add_tokens`` of transformers does.

    Raises:
        RecipeError: one is a token already, or would never come out.
    """
    vocabulary, place = set(tokenizer.get_vocab()), "tokenizer.add_tokens"
    for token in tokens:
        if token in vocabulary:
            raise RecipeError(
                f"{token!r} is a token of this tokenizer already",
                place=place,
                remedy="leave it out",
            )
        vocabulary.add(token)
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
    """Return, by new token, the tokens its text is read as where none of the new ones is known."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    texts = {entry["id"]: entry["content"] for entry in state["added_tokens"]}
    dropped = set(new)
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["id"] not in dropped]
    before = Tokenizer.from_str(json.dumps(state))
    pieces = {}
    for token in new:
        if token in texts:
            ids = before.encode(texts[token], add_special_tokens=False).ids
            pieces[token] = [piece for piece in ids if piece not in dropped]
    return pieces


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of everything that decides how text becomes tokens."""
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    content: list[Any] = [*_content(tokenizer), special]
    target = target_of(tokenizer)
    if target is not tokenizer:
        content.append(tokenizer_hash(target))
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _content(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    if not tokenizer.is_fast:
        return [type(tokenizer).__name__, _vocabulary_files(tokenizer)]
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # the last call left them there: they are no properties of the tokenizer
    del backend["truncation"], backend["padding"]
    return [backend]


def _vocabulary_files(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the sha256 of each file that a slow tokenizer is made of."""
    with tempfile.TemporaryDirectory(prefix="lmkit-") as folder:
        tokenizer.save_vocabulary(folder)
        return [
            hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())
        ]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
