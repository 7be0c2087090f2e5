"""Denoising: an encoder-decoder reads a text with gaps and writes what is missing, or the whole text.

With sentinel tokens (T5) the gaps are numbered, and what fills them is written: span corruption (Raffel et al. 2020). With
a mask token (BART) the whole text is written: text infilling (Lewis et al. 2020).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from lmkit.tasks.base import Card, Facts, Responder, Task
from lmkit.tasks.generation import check_beams, write_in_transformers
from lmkit.tasks.language import LanguageProblem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lmkit.recipe.schema import Recipe
    from lmkit.tasks.denoise.task import Denoising

SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")  # mT5's have the mark of a space


class DenoisingProblem(LanguageProblem):
    name = "denoise"
    section = "masking"
    keys = ("masking", "masking.span", "translation", "generation")
    auto_class = "AutoModelForSeq2SeqLM"
    smoke_preset = "t5"
    architecture = "encoder-decoder"

    def check(self, recipe: Recipe, facts: Facts | None = None) -> None:
        super().check(recipe, facts)
        check_beams(recipe.generation)

    def card(self, facts: Facts, tokenizer: Any) -> Card:
        command = f'lmkit predict DIR "a text with one {gap_token(tokenizer)}"'
        return Card(command, write_in_transformers())

    def tokenizer_role(self, model_type: str, role: str) -> str:
        """T5 and its descendants know gaps by sentinels, others by a mask."""
        if role != "encoder-decoder":
            return role
        if "t5" in model_type or model_type == "switch_transformers":
            return "encoder-decoder with sentinels"
        return "encoder-decoder with a mask"

    def task(self, recipe: Recipe, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> Task:
        from lmkit.tasks.denoise.task import Denoising

        return Denoising(recipe, facts, tokenizer)

    def responder(self, task: Task) -> Responder:
        from lmkit.tasks.denoise.fills import Fills

        return Fills(cast("Denoising", task))


DENOISING = DenoisingProblem()


def sentinels_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens ``<extra_id_0>``, ``<extra_id_1>``, ... by number; none where the tokenizer has none."""
    found = {
        int(match[1]): number
        for token, number in tokenizer.get_vocab().items()
        if (match := SENTINEL.fullmatch(token))
    }
    return [found[number] for number in sorted(found)]


def gap_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """What marks the first gap of a text."""
    return "<extra_id_0>" if sentinels_of(tokenizer) else str(tokenizer.mask_token)
