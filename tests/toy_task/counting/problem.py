"""Count something in a text: what can be said without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta

from lmkit.metrics.statistics import Statistics, ratio
from lmkit.recipe.section import Section, about
from lmkit.records import Record
from lmkit.tasks.answers import Answer, Display, Line, Part
from lmkit.tasks.base import Baseline, Card, Facts, Metric, Peek, Problem, Task
from lmkit.tasks.fields import Field

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lmkit.recipe.schema import Recipe

FIELDS = (
    Field("text", "text", aliases=("sentence",)),
    Field("count", "number", aliases=("n",), gold=True),
)
PYTHON = """from transformers import pipeline

model = pipeline("text-classification", model="DIR", function_to_apply="none")"""


class Counting(Section, frozen=True, kw_only=True):
    scale: Annotated[float, Meta(gt=0), about("the model learns counts divided by this")] = 10.0


@dataclass(frozen=True)
class Count(Answer):
    """A whole number."""

    kind = "count"
    order = "farthest from the gold"

    def badness(self, record: Record) -> float:
        return float(abs(record["prediction"] - record["gold"]))

    def display(self, record: Record) -> Display:
        about = Part(f"counted {record['prediction']}, there are {record['gold']:g}")
        return Display([Line([Part(record["text"])])], [Line([about])])


class CountingProblem(Problem):
    name = "counting"
    aliases = ("count-words",)
    stage = "finetune"
    section = "counting"
    section_type = Counting
    auto_class = "AutoModelForSequenceClassification"
    smoke_preset = "bert"
    measures = (
        Metric("count_error", less_is_better=True),
        Metric("exact"),
        Metric("loss", less_is_better=True),
    )

    def fields(
        self, recipe: Recipe, facts: Facts | None = None, peek: Peek | None = None
    ) -> tuple[Field, ...]:
        return FIELDS

    def learn(self, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, Any]:
        return {"largest": max(row["count"] for row in rows)}

    def answer(self, facts: Facts) -> Answer:
        return Count()

    def score(self, facts: Facts, records: Sequence[Record]) -> Statistics:
        error = [abs(record["prediction"] - record["gold"]) for record in records]
        exact = [record["prediction"] == record["gold"] for record in records]
        counts = np.array([error, exact, np.ones(len(records))], np.float64).T

        def metrics(sums: Any) -> dict[str, Any]:
            names = ("count_error", "exact")
            return {name: ratio(sums[..., i], sums[..., 2]) for i, name in enumerate(names)}

        return Statistics(counts, metrics)

    def baselines(self, facts: Facts) -> tuple[Baseline, ...]:
        return (Baseline("usual_count", usual_count), Baseline("spaces", count_spaces))

    def card(self, facts: Facts, tokenizer: Any) -> Card:
        return Card('lmkit predict DIR "how many words are these"', PYTHON)

    def task(self, recipe: Recipe, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> Task:
        from counting.task import CountingTask

        return CountingTask(self, recipe, facts, tokenizer)


COUNTING = CountingProblem()


def usual_count(train: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Answer every row with the median count."""
    return [round(float(np.median([row["count"] for row in train])))] * len(rows)


def count_spaces(
    train: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Count what stands between spaces."""
    return [len(row["text"].split()) for row in rows]
