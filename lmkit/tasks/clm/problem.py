"""Causal language modelling: predict every token from the ones before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lmkit.tasks.base import Card, Facts, Metric, Responder, Task
from lmkit.tasks.generation import check_beams
from lmkit.tasks.language import MEASURES, LanguageProblem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lmkit.recipe.schema import Recipe
    from lmkit.tasks.clm.task import CausalLanguageModeling


class CausalProblem(LanguageProblem):
    name = "clm"
    foreign_names = ("causal-lm", "lm", "text-generation", "causal-language-modeling")
    keys = ("generation",)
    eval_keys = frozenset({"stride"})
    auto_class = "AutoModelForCausalLM"
    smoke_preset = "llama"
    architecture = "decoder"
    measures = (Metric("bits_per_byte", less_is_better=True), *MEASURES)
    counts_bytes = True

    def check(self, recipe: Recipe, facts: Facts | None = None) -> None:
        super().check(recipe, facts)
        check_beams(recipe.generation)

    def card(self, facts: Facts, tokenizer: Any) -> Card:
        return Card(
            'lmkit predict DIR "the beginning of a text"',
            'from transformers import pipeline\n\nmodel = pipeline("text-generation", model="DIR")',
        )

    def task(self, recipe: Recipe, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> Task:
        from lmkit.tasks.clm.task import CausalLanguageModeling

        return CausalLanguageModeling(self, recipe, facts, tokenizer)

    def scorer(self, task: Task) -> Task:
        from lmkit.tasks.clm.sliding import SlidingWindow

        stride = task.recipe.eval.stride
        if stride is None:
            return task
        return SlidingWindow(cast("CausalLanguageModeling", task), stride)

    def responder(self, task: Task) -> Responder:
        from lmkit.tasks.clm.continuation import Continuation

        return Continuation(task)


CAUSAL = CausalProblem()
