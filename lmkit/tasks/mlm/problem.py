"""Masked language modelling (Devlin et al. 2019): predict the tokens that were hidden, from both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmkit.records import Record
from lmkit.tasks.base import Card, Facts, Metric, Responder, Task
from lmkit.tasks.language import MEASURES, LanguageProblem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lmkit.metrics.statistics import Statistics
    from lmkit.recipe.schema import Recipe

PSEUDO = Metric("pseudo_perplexity", less_is_better=True, selects=False)


class MaskedProblem(LanguageProblem):
    name = "mlm"
    foreign_names = ("masked-lm", "fill-mask", "masked-language-modeling")
    section = "masking"
    keys = ("masking", "masking.whole_words")
    eval_keys = frozenset({"pseudo_perplexity"})
    auto_class = "AutoModelForMaskedLM"
    smoke_preset = "bert"
    measures = (*MEASURES, PSEUDO)

    def metrics(self, facts: Facts) -> tuple[Metric, ...]:
        return MEASURES

    def measured(self, recipe: Recipe, facts: Facts) -> tuple[Metric, ...]:
        return (*MEASURES, PSEUDO) if recipe.eval.pseudo_perplexity else MEASURES

    def score(self, facts: Facts, records: Sequence[Record]) -> Statistics:
        masked = super().score(facts, records)
        if not records or not all("pseudo_nll" in record for record in records):
            return masked
        from lmkit.tasks.mlm.pseudo import add_pseudo_perplexity

        return add_pseudo_perplexity(masked, records)

    def card(self, facts: Facts, tokenizer: Any) -> Card:
        mask = getattr(tokenizer, "mask_token", "")
        return Card(
            f'lmkit predict DIR "a text with one {mask}"',
            'from transformers import pipeline\n\nmodel = pipeline("fill-mask", model="DIR")',
        )

    def task(self, recipe: Recipe, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> Task:
        from lmkit.tasks.mlm.task import MaskedLanguageModeling

        return MaskedLanguageModeling(self, recipe, facts, tokenizer)

    def scorer(self, task: Task) -> Task:
        from lmkit.tasks.mlm.pseudo import PseudoPerplexity

        return PseudoPerplexity(task) if task.recipe.eval.pseudo_perplexity else task

    def responder(self, task: Task) -> Responder:
        from lmkit.tasks.mlm.fills import Fills

        return Fills(task)


MASKED = MaskedProblem()
