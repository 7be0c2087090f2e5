"""Translation with an encoder-decoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmkit.batch import Row
from lmkit.records import Record
from lmkit.tasks.answers import Answer, Text
from lmkit.tasks.base import Baseline, Card, Facts, Metric, Peek, Problem, Task
from lmkit.tasks.fields import Field
from lmkit.tasks.generation import check_beams, write_in_transformers
from lmkit.tasks.words import SOUTHEAST_ASIAN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lmkit.metrics.statistics import Statistics
    from lmkit.recipe.schema import Recipe

# kana, Hangul; Thai, Lao, Burmese, Khmer
BY_CHARACTER = re.compile(f"[\u3040-\u30ff\uac00-\ud7af{SOUTHEAST_ASIAN}]")


class TranslationProblem(Problem):
    name = "translation"
    foreign_names = ("seq2seq", "seq-2-seq-lm", "mt")
    stage = "finetune"
    section = "translation"
    keys = (
        "data.long_text",
        "train.group_by_length",
        "translation",
        "translation.target_language",
        "translation.prefix",
        "generation",
    )
    decided_keys = ("translation",)
    auto_class = "AutoModelForSeq2SeqLM"
    smoke_preset = "marian"
    architecture = "encoder-decoder"
    writes = True
    measures = (
        Metric("bleu"),
        Metric("chrf"),
        Metric("ter", less_is_better=True),
        Metric("loss", less_is_better=True),
        Metric("length_ratio", selects=False),
        Metric("empty", less_is_better=True, selects=False),
        Metric("truncated", less_is_better=True, selects=False),
    )
    select_by = "loss"

    def fields(
        self, recipe: Recipe, facts: Facts | None = None, peek: Peek | None = None
    ) -> tuple[Field, ...]:
        return (
            Field("source", "text", aliases=("src", "source_text")),
            Field("target", "text", aliases=("tgt", "target_text", "translation"), gold=True),
        )

    def check(self, recipe: Recipe, facts: Facts | None = None) -> None:
        super().check(recipe, facts)
        check_beams(recipe.generation)

    def answer(self, facts: Facts) -> Answer:
        return Text()

    def score(self, facts: Facts, records: Sequence[Record]) -> Statistics:
        from lmkit.metrics.translation import translation_statistics

        references = [record["gold"] for record in records]
        return translation_statistics(
            [record["prediction"] for record in records],
            references,
            truncated=[bool(record.get("truncated")) for record in records],
            tokenize=tokenizer_for(references),
        )

    def baselines(self, facts: Facts) -> tuple[Baseline, ...]:
        from lmkit.tasks.translation.baselines import BASELINES

        return BASELINES

    def card(self, facts: Facts, tokenizer: Any) -> Card:
        return Card('lmkit predict DIR "a sentence"', write_in_transformers())

    def rows(self, texts: Sequence[str], facts: Facts) -> list[Row]:
        return [{"id": number, "source": text} for number, text in enumerate(texts)]

    def show(self, record: Record, facts: Facts) -> dict[str, Any]:
        return {
            "id": record["id"],
            "text": record["source"],
            "translation": record["prediction"],
            "score": record["score"],
        }

    def task(self, recipe: Recipe, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> Task:
        from lmkit.tasks.translation.task import Translation

        return Translation(self, recipe, facts, tokenizer)


TRANSLATION = TranslationProblem()


def tokenizer_for(references: Sequence[str]) -> str:
    """sacreBLEU's tokenizer for the script of the references: ``zh``, ``char`` for those of BY_CHARACTER, else ``13a``.

    13a takes an unspaced sentence for one word, so BLEU would be zero; the signature names the choice. sacreBLEU has words
    only of Japanese and Korean, and those by packages of their own; its ``flores200`` pieces are a file to download.
    """
    sample = "".join(references[:500])
    han = sum("\u4e00" <= c <= "\u9fff" for c in sample)
    if len(BY_CHARACTER.findall(sample)) > 0.1 * len(sample):
        return "char"
    return "zh" if han > 0.2 * len(sample) else "13a"
