"""Word tagging: one tag a word, for named entities (IOB2) as for parts of speech (plain tags)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lmkit.batch import Row
from lmkit.errors import DataError, RecipeError
from lmkit.records import Record
from lmkit.tasks.answers import Answer, Entities, Tags
from lmkit.tasks.base import Baseline, Card, Facts, Metric, Peek, Problem
from lmkit.tasks.fields import Field, Form
from lmkit.tasks.ner.entities import entities, marks_entities
from lmkit.tasks.ner.spans import SPLIT, words_with_tags
from lmkit.tasks.words import joined, split_words, word_split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lmkit.metrics.statistics import Statistics
    from lmkit.recipe.schema import Recipe
    from lmkit.tasks.base import Task

FIELDS = (
    Field("tokens", "words", aliases=("words", "text_tokens")),
    Field("tags", "tags", aliases=("ner_tags", "labels", "pos_tags", "upos"), gold=True),
)
SPAN_NAMES = ("spans", "ents", "annotations", "label", "labels")
IN_CHARACTERS = Form(
    (
        Field("text", "text", aliases=("sentence", "content", "document")),
        Field("entities", "spans", aliases=SPAN_NAMES, gold=True),
    ),
    convert=words_with_tags,
    adds=(Field("text", "text"), Field("offsets", "offsets")),
)
SAMPLE = 1000  # rows that show how words are cut


class TaggingProblem(Problem):
    name = "ner"
    foreign_names = ("token-classification", "token-cls", "tagging", "pos")
    stage = "finetune"
    section = "tagging"
    keys = ("data.labels", "data.long_text", "data.overlap", "train.group_by_length", "tagging")
    decided_keys = ("tagging.crf", "tagging.crf_learning_rate")
    auto_class = "AutoModelForTokenClassification"
    smoke_preset = "bert"
    forms = (IN_CHARACTERS,)
    measures = (
        Metric("f1"),
        Metric("f1_strict"),
        Metric("precision"),
        Metric("recall"),
        Metric("accuracy"),
        Metric("f1_macro"),
        Metric("loss", less_is_better=True),
    )

    def fields(
        self, recipe: Recipe, facts: Facts | None = None, peek: Peek | None = None
    ) -> tuple[Field, ...]:
        return FIELDS

    def check(self, recipe: Recipe, facts: Facts | None = None) -> None:
        """Refuse keys of ``tagging`` that would have no effect, or cannot have theirs here."""
        super().check(recipe, facts)
        options = recipe.tagging
        is_entities = facts is None or marks_entities(facts["labels"])
        if options.decoding == "viterbi" and not options.crf and not is_entities:
            raise RecipeError(
                "every sequence of these tags is allowed: they mark no entities (B-TYPE, I-TYPE, O, or B, I, O)",
                place="tagging.decoding",
                remedy="leave it out",
            )
        if options.crf_learning_rate != type(options)().crf_learning_rate and not options.crf:
            raise RecipeError(
                "has no effect without a CRF",
                place="tagging.crf_learning_rate",
                remedy="leave it out, or tagging.crf=true",
            )
        if options.crf and recipe.train.label_smoothing:
            raise RecipeError(
                "has no effect with tagging.crf, whose loss is of whole sequences",
                place="train.label_smoothing",
                remedy="leave one of the two out",
            )
        if options.crf and find_spec("torchcrf") is None:
            raise RecipeError(
                "the library it needs, pytorch-crf, is not installed",
                place="tagging.crf",
                remedy="pip install pytorch-crf, or lmkit[crf]",
            )

    def learn(self, rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        if len(labels) < 2:
            raise DataError(
                f"all words have one tag: {', '.join(map(repr, labels))}",
                place="data.train",
                remedy="tagging needs at least two; is data.columns right?",
            )
        sample = rows[:SAMPLE]
        # raw text is cut as the training words were: by lmkit itself, or so that it looks like them
        if "offsets" in sample[0]:
            split = SPLIT
        else:
            split = word_split([word for row in sample for word in row["tokens"]])
        return {"labels": list(labels), "word_split": split}

    def answer(self, facts: Facts) -> Answer:
        return Entities() if marks_entities(facts["labels"]) else Tags()

    def metrics(self, facts: Facts) -> tuple[Metric, ...]:
        names: tuple[str, ...] = ("accuracy", "f1_macro", "loss")
        if marks_entities(facts["labels"]):
            names = ("f1", "f1_strict", "precision", "recall", "accuracy", "loss")
        by_name = {metric.name: metric for metric in self.measures}
        return tuple(by_name[name] for name in names)

    def score(self, facts: Facts, records: Sequence[Record]) -> Statistics:
        from lmkit.metrics.tagging import tagging_statistics

        gold = [record["gold"] for record in records]
        predicted = [record["prediction"] for record in records]
        return tagging_statistics(gold, predicted, entities=marks_entities(facts["labels"]))

    def baselines(self, facts: Facts) -> tuple[Baseline, ...]:
        from lmkit.tasks.ner.baselines import baselines_of

        return baselines_of(facts["labels"])

    def card(self, facts: Facts, tokenizer: Any) -> Card:
        return Card(
            'lmkit predict DIR "a text"',
            'from transformers import pipeline\n\nmodel = pipeline("token-classification", model="DIR", aggregation_strategy="first")',
        )

    def rows(self, texts: Sequence[str], facts: Facts) -> list[Row]:
        rows = []
        for number, text in enumerate(texts):
            offsets = split_words(text, facts.get("word_split", "punctuation"))
            words = [text[start:end] for start, end in offsets]
            rows.append({"id": number, "text": text, "tokens": words, "offsets": offsets})
        return rows

    def show(self, record: Record, facts: Facts) -> dict[str, Any]:
        tokens, tags = record["tokens"], record["prediction"]
        text, offsets = joined(tokens)
        if "offsets" in record:
            text, offsets = record["text"], record["offsets"]
        shown = {"id": record["id"], "text": text, "tokens": tokens, "tags": tags, "entities": []}
        if marks_entities(facts["labels"]):
            shown["entities"] = entities(text, offsets, tags, record["score"])
        return shown

    def task(self, recipe: Recipe, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> Task:
        from lmkit.tasks.ner.task import WordTagging

        return WordTagging(self, recipe, facts, tokenizer)


TAGGING = TaggingProblem()
