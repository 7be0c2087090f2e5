"""How a translation model is told which languages to read and to write.

mBART, NLLB and M2M-100 have a token per language, which their tokenizer puts around the text and which starts the output
(Liu et al. 2020; NLLB Team 2022; Fan et al. 2021). Marian models with several targets read ``>>deu<<`` before the source
(Tiedemann and Thottingal 2020), T5 a sentence (Raffel et al. 2020); all others know their two languages by training.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmkit.errors import ModelError, RecipeError, suggest
from lmkit.recipe.schema import Translation

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

CODE = re.compile(r"[a-z]{2,3}_[A-Za-z]{2,4}")  # en_XX, eng_Latn
# the folder, beside the source's files, of a tokenizer of its own for the target
TARGET = "target_tokenizer"
MARKED = re.compile(r">>(\S+)<<")


@dataclass(frozen=True)
class Languages:
    """What a model has to be told, besides what its tokenizer writes by itself.

    Args:
        prefix: text before each source.
        target_id: the token of the target language; None where the model has none.
        starts: that token is what the decoder starts with (mBART-25), not the first it writes (mBART-50, NLLB, M2M-100).
    """

    prefix: str = ""
    target_id: int | None = None
    starts: bool = False

    def tell(self, generation: GenerationConfig) -> None:
        """Set what the output begins with."""
        if self.target_id is not None and self.starts:
            generation.decoder_start_token_id = self.target_id
        elif self.target_id is not None:
            generation.forced_bos_token_id = self.target_id


def set_languages(tokenizer: PreTrainedTokenizerBase, options: Translation) -> Languages:
    """Set the tokenizer to the languages, in place; returns what else is to be done.

    Raises:
        RecipeError: a code is unknown, missing, or has no effect with this tokenizer.
    """
    codes = language_codes(tokenizer)
    if hasattr(tokenizer, "src_lang"):
        for key, role in (("source_language", "source"), ("target_language", "target")):
            _check(
                getattr(options, key),
                codes,
                key,
                f"this model reads and writes many languages, and has to be told the {role}",
            )
        assert options.target_language is not None
        tokenizer.src_lang = options.source_language
        tokenizer.tgt_lang = options.target_language
        target_id = int(tokenizer.convert_tokens_to_ids(codes[options.target_language]))
        return Languages(options.prefix or "", target_id, _ends_with(tokenizer, target_id))
    if options.source_language is not None:
        raise RecipeError(
            "has no effect: the tokenizer has no codes of source languages",
            place="translation.source_language",
            remedy="leave it out" + _by_prefix(codes),
        )
    if options.target_language is None:
        if len(codes) > 1 and options.prefix is None:
            key = "target_language"
            _check(
                None, codes, key, "this model writes several languages, and has to be told which"
            )
        return Languages(options.prefix or "")
    if not codes:
        raise RecipeError(
            "has no effect: the tokenizer has no language codes",
            place="translation.target_language",
            remedy="leave it out" + _by_prefix(codes),
        )
    if options.prefix is not None:
        raise RecipeError(
            "given beside translation.target_language, which is written before the source itself",
            place="translation.prefix",
            remedy="keep one of the two",
        )
    code = options.target_language.removeprefix(">>").removesuffix("<<")
    _check(code, codes, "target_language", "")
    return Languages(f"{codes[code]} ")


def set_source(tokenizer: PreTrainedTokenizerBase, options: Translation) -> None:
    """Set the language of texts that are read and written alike, in place.

    Raises:
        RecipeError: the code is unknown, missing, or has no effect with this tokenizer.
    """
    code = options.source_language
    if hasattr(tokenizer, "src_lang"):
        _check(
            code,
            language_codes(tokenizer),
            "source_language",
            "this model reads many languages, and has to be told which",
        )
        tokenizer.src_lang = code
    elif code is not None:
        raise RecipeError(
            "has no effect: the tokenizer has no codes of languages",
            place="translation.source_language",
            remedy="leave it out",
        )


def language_codes(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the token of each language code; empty where the tokenizer has none."""
    if not hasattr(tokenizer, "src_lang"):
        found = (MARKED.fullmatch(token) for token in tokenizer.get_vocab())
        return {match[1]: match[0] for match in found if match}
    if hasattr(tokenizer, "lang_code_to_token"):  # M2M-100
        return dict(tokenizer.lang_code_to_token)
    vocabulary = tokenizer.get_vocab()
    return {
        token: token
        for token in map(str, tokenizer.extra_special_tokens)
        if CODE.fullmatch(token) and token in vocabulary
    }


def _check(code: str | None, codes: dict[str, str], key: str, why: str) -> None:
    if code is None:
        remedy = f"one of: {', '.join(sorted(codes)[:12])}" + (
            f", ... ({len(codes)} in all)" if len(codes) > 12 else ""
        )
        raise RecipeError(why, place=f"translation.{key}", remedy=remedy)
    if code not in codes:
        raise RecipeError(
            f"the tokenizer has no language {code!r}",
            place=f"translation.{key}",
            remedy=suggest(code, codes),
        )


def _by_prefix(codes: dict[str, str]) -> str:
    return (
        "; the source is told by its text"
        if codes
        else ", or tell the model in words: translation.prefix='translate English to German: '"
    )


def _ends_with(tokenizer: PreTrainedTokenizerBase, target_id: int) -> bool:
    """Tell if the target's code stands after the text (mBART-25) and not before it.

    Raises:
        ModelError: neither; or after it where the decoder does not start with what the target ends with.
    """
    ids = tokenizer(text_target="a", verbose=False)["input_ids"]
    if ids[0] == target_id:
        return False
    if ids[-1] == target_id and not getattr(tokenizer, "legacy_behaviour", False):
        return True
    raise ModelError(
        "this tokenizer does not begin the target with its language",
        place=str(tokenizer.name_or_path),
        remedy="NLLB: set legacy_behaviour to false in its tokenizer_config.json",
    )


def target_of(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return what the target of a translation is written with: a tokenizer of its own, or the same."""
    found: PreTrainedTokenizerBase = getattr(tokenizer, TARGET, tokenizer)
    return found
