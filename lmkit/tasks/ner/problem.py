"""Word tagging: one tag a word, for named entities (IOB2) as for parts of speech (plain tags)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lmkit.batch import Row
from lmkit.errors import DataError, RecipeError
from lmkit.tasks.answers import Answer, Entities, Record, Tags
from lmkit.tasks.base import Card, Facts, Metric, Peek, Problem
from lmkit.tasks.fields import Field, Form
from lmkit.tasks.ner.spans import SPLIT, words_with_tags
from lmkit.tasks.words import Offsets, joined, split_words, word_split

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
    stage = "finetune"
    section = "tagging"
    keys = ("data.labels", "data.long_text", "data.overlap", "train.group_by_length", "tagging")
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
        names = ("accuracy", "f1_macro", "loss")
        if marks_entities(facts["labels"]):
            names = ("f1", "f1_strict", "precision", "recall", "accuracy", "loss")
        by_name = {metric.name: metric for metric in self.measures}
        return tuple(by_name[name] for name in names)

    def score(self, facts: Facts, records: Sequence[Record]) -> Statistics:
        from lmkit.metrics.tagging import tagging_statistics

        gold = [record["gold"] for record in records]
        predicted = [record["prediction"] for record in records]
        return tagging_statistics(gold, predicted, entities=marks_entities(facts["labels"]))

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

        return WordTagging(recipe, facts, tokenizer)


TAGGING = TaggingProblem()


def marks_entities(labels: Collection[str]) -> bool:
    """Tell if these tags mark entities: some have a type, or all are of ``B``, ``I``, ``O`` with a ``B``.

    >>> marks_entities(["O", "B-X", "I-X"]), marks_entities(["O", "B", "I"]), marks_entities(["B", "I", "N", "O"])
    (True, True, False)
    """
    if any(label.startswith(("B-", "I-")) for label in labels):
        return True
    return {"B"} < set(labels) <= {"B", "I", "O"}


def entities(
    text: str, offsets: Offsets, tags: Sequence[str], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """Read entities in characters off IOB2 tags; the score is the mean of their words'.

    >>> entities("in New York", [(0, 2), (3, 6), (7, 11)], ["O", "B-LOC", "I-LOC"], [1, 0.5, 1.0])
    [{'start': 3, 'end': 11, 'label': 'LOC', 'score': 0.75, 'text': 'New York'}]
    >>> [found["label"] for found in entities("Rome", [(0, 4)], ["B"], [1])]
    ['_']
    """
    from lmkit.metrics.tagging import type_of

    spans: list[tuple[str, list[int]]] = []
    previous = "O"
    for number, tag in enumerate(tags):
        if tag != "O":
            prefix, label = tag.partition("-")[0], type_of(tag)
            if prefix == "I" and previous != "O" and type_of(previous) == label:
                spans[-1][1].append(number)
            else:
                spans.append((label, [number]))
        previous = tag
    found = []
    for label, words in spans:
        start, end = offsets[words[0]][0], offsets[words[-1]][1]
        score = sum(scores[word] for word in words) / len(words)
        found.append(
            {"start": start, "end": end, "label": label, "score": score, "text": text[start:end]}
        )
    return found
