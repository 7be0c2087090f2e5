"""Denoising: an encoder-decoder reads a text with gaps and writes what is missing, or the whole text.

With sentinel tokens (T5) the gaps are numbered, and what fills them is written: span corruption (Raffel et al. 2020). With
a mask token (BART) the whole text is written: text infilling (Lewis et al. 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lmkit.tasks.base import Card, Facts, Responder, Task
from lmkit.tasks.denoise.gaps import gap_token
from lmkit.tasks.generation import check_beams, write_in_transformers
from lmkit.tasks.language import LanguageProblem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lmkit.recipe.schema import Recipe
    from lmkit.tasks.denoise.task import Denoising


class DenoisingProblem(LanguageProblem):
    name = "denoise"
    foreign_names = ("denoising", "span-corruption", "text-infilling", "t5-mlm", "bart-dlm")
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

        return Denoising(self, recipe, facts, tokenizer)

    def responder(self, task: Task) -> Responder:
        from lmkit.tasks.denoise.fills import Fills

        return Fills(cast("Denoising", task))


DENOISING = DenoisingProblem()
