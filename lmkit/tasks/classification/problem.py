"""Text classification: one label, several, or a number per text or pair of texts, chosen by the data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.batch import Row
from lmkit.errors import DataError, RecipeError, suggest
from lmkit.records import Record
from lmkit.tasks.answers import Answer, Label, LabelSet, Number
from lmkit.tasks.base import Baseline, Card, Facts, Metric, Peek, Problem
from lmkit.tasks.fields import Field

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from lmkit.metrics.statistics import Statistics
    from lmkit.recipe.schema import Recipe
    from lmkit.tasks.base import Task

TEXT = Field(
    "text",
    "text",
    aliases=(
        "sentence",
        "content",
        "review",
        "document",
        "sentence1",
        "premise",
        "question1",
        "text1",
        "text_a",
    ),
)
PAIR = Field(
    "text_pair", "text", aliases=("sentence2", "hypothesis", "question2", "text2", "text_b")
)
LABEL_NAMES = ("labels", "class", "category", "intent", "score")
LABEL = Field("label", "label", aliases=LABEL_NAMES, gold=True)
KINDS = {"single_label": "label", "multi_label": "labels", "regression": "number"}
MEASURES = {
    "single_label": ("f1_macro", "accuracy", "mcc", "loss"),
    "multi_label": ("f1_macro", "f1_micro", "f1_samples", "accuracy", "mcc", "loss"),
    "regression": ("spearman", "pearson", "mse", "loss"),
}
FEW = 20  # rows, of which fewer may each have a label of their own
SHOWN = 60  # characters of a label


class ClassificationProblem(Problem):
    name = "classification"
    foreign_names = (
        "text-classification",
        "sequence-classification",
        "seq-cls",
        "sentiment-analysis",
    )
    stage = "finetune"
    section = "classification"
    keys = (
        "data.labels",
        "data.long_text",
        "data.overlap",
        "train.group_by_length",
        "classification",
    )
    decided_keys = ("classification.kind", "classification.class_weights")
    eval_keys = frozenset({"temperature"})
    auto_class = "AutoModelForSequenceClassification"
    smoke_preset = "bert"
    long_text = ("windows", "head", "head_tail", "error")
    measures = (
        Metric("f1_macro"),
        Metric("f1_micro"),
        Metric("f1_samples"),
        Metric("accuracy"),
        Metric("mcc"),
        Metric("spearman"),
        Metric("pearson"),
        Metric("mse", less_is_better=True),
        Metric("loss", less_is_better=True),
    )

    def fields(
        self, recipe: Recipe, facts: Facts | None = None, peek: Peek | None = None
    ) -> tuple[Field, ...]:
        options = recipe.classification
        if facts is not None:
            kind, is_pair = kind_in(facts), facts.get("is_pair", False)
        elif peek is not None:
            kind = kind_of(peek(LABEL) or []) if options.kind == "auto" else options.kind
            is_pair = PAIR.name in recipe.data.columns or peek(PAIR) is not None
        else:
            return (TEXT, LABEL)
        gold = Field(LABEL.name, KINDS[kind], LABEL_NAMES, gold=True, separator=options.separator)  # type: ignore[arg-type]
        return (TEXT, PAIR, gold) if is_pair else (TEXT, gold)

    def check(self, recipe: Recipe, facts: Facts | None = None) -> None:
        """Refuse what has no effect on this kind of gold, and weights of labels that are not there."""
        super().check(recipe, facts)
        if facts is None:
            return
        options = recipe.classification
        kind = kind_in(facts)
        if options.kind == "auto" and kind == "single_label" and "counts" in facts:
            _check_numbers(facts["labels"])
        if kind == "regression":
            _check_regression(recipe)
        if options.threshold != "tuned" and kind != "multi_label":
            raise RecipeError(
                f"has no effect on {kind}",
                place="classification.threshold",
                remedy="leave it out",
            )
        if isinstance(options.class_weights, dict):
            _check_weights(options.class_weights, facts["labels"])

    def learn(self, rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        first = rows[0] if len(rows) else {"label": ""}
        kind = "single_label"
        if isinstance(first["label"], list):
            kind = "multi_label"
        elif isinstance(first["label"], float):
            kind = "regression"
        is_pair = PAIR.name in first
        facts: dict[str, Any] = {"kind": kind, "is_pair": is_pair, "labels": list(labels)}
        if kind == "regression":
            return facts | {"labels": ["value"]}
        if len(labels) < (2 if kind == "single_label" else 1):
            fault = f"all rows have one label: {labels[0]!r}" if labels else "no row has a label"
            raise DataError(
                fault,
                place="data.train",
                remedy="classification needs at least two; is data.columns.label the right column?",
            )
        counts: Counter[str] = Counter()
        for row in rows:
            counts.update(row["label"] if kind == "multi_label" else [row["label"]])
        check = _check_sets if kind == "multi_label" else _warn_of_many
        check(rows, counts)
        return facts | {"rows": len(rows), "counts": [counts[label] for label in labels]}

    def recover(self, records: Sequence[Record]) -> dict[str, Any]:
        first = records[0] if records else {}
        facts: dict[str, Any] = {"kind": "single_label", "is_pair": PAIR.name in first}
        if isinstance(first.get("gold"), list):
            facts["kind"] = "multi_label"
        elif isinstance(first.get("gold"), (int, float)):
            facts |= {"kind": "regression", "labels": ["value"]}
        return facts

    def read_config(
        self, config: PretrainedConfig, recipe: Recipe, peek: Peek | None = None
    ) -> dict[str, Any]:
        facts = super().read_config(config, recipe, peek)
        if recipe.classification.kind != "auto":
            facts["kind"] = recipe.classification.kind
        elif config.problem_type:
            facts["kind"] = config.problem_type.removesuffix("_classification")
        elif len(config.id2label or {}) == 1:
            facts["kind"] = "regression"  # as Hugging Face's models decide
        has_pairs = peek is not None and peek(PAIR) is not None
        facts["is_pair"] = PAIR.name in recipe.data.columns or has_pairs
        return facts

    def answer(self, facts: Facts) -> Answer:
        kinds = {"single_label": Label, "multi_label": LabelSet, "regression": Number}
        return kinds[kind_in(facts)]()

    def metrics(self, facts: Facts) -> tuple[Metric, ...]:
        by_name = {metric.name: metric for metric in self.measures}
        return tuple(by_name[name] for name in MEASURES[kind_in(facts)])

    def score(self, facts: Facts, records: Sequence[Record]) -> Statistics:
        gold = [record["gold"] for record in records]
        predicted = [record["prediction"] for record in records]
        kind = kind_in(facts)
        if kind == "multi_label":
            from lmkit.metrics.multi_label import multi_label_statistics

            return multi_label_statistics(gold, predicted, facts["labels"])
        if kind == "regression":
            from lmkit.metrics.regression import regression_statistics

            return regression_statistics(gold, predicted)
        from lmkit.metrics.classification import classification_statistics

        return classification_statistics(gold, predicted, facts["labels"])

    def tunes(self, recipe: Recipe, facts: Facts) -> bool:
        return kind_in(facts) == "multi_label" and recipe.classification.threshold == "tuned"

    def tune(self, facts: Facts, records: Sequence[Record]) -> dict[str, Any]:
        """Return the threshold of each label with the best F1 on these records."""
        thresholds = []
        for label in facts["labels"]:
            probabilities = [record["probabilities"][label] for record in records]
            applies = [label in record["gold"] for record in records]
            thresholds.append(best_threshold(probabilities, applies))
        return {"thresholds": thresholds}

    def baselines(self, facts: Facts) -> tuple[Baseline, ...]:
        from lmkit.tasks.classification.baselines import baselines_of

        return baselines_of(kind_in(facts), facts["labels"])

    def card(self, facts: Facts, tokenizer: Any) -> Card:
        return Card(
            'lmkit predict DIR "a text"',
            'from transformers import pipeline\n\nmodel = pipeline("text-classification", model="DIR")',
        )

    def rows(self, texts: Sequence[str], facts: Facts) -> list[Row]:
        """Make rows of texts; of a pair, with a tab between the two.

        Raises:
            DataError: the model reads pairs, and a text has no tab or nothing on one side of it.
        """
        if not facts.get("is_pair"):
            return super().rows(texts, facts)
        pairs = [text.partition("\t") for text in texts]
        for number, (first, _, second) in enumerate(pairs, 1):
            if not (first.strip() and second.strip()):
                raise DataError(
                    "this model reads pairs of texts, and here is one",
                    place=f"text {number}",
                    remedy="write both with a tab between them, or give --file with the columns text and text_pair",
                )
        return [
            {"id": number, "text": first, "text_pair": second}
            for number, (first, _, second) in enumerate(pairs)
        ]

    def task(self, recipe: Recipe, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> Task:
        from lmkit.tasks.classification.task import Classification

        return Classification(self, recipe, facts, tokenizer)


CLASSIFICATION = ClassificationProblem()


def kind_in(facts: Facts) -> str:
    """Return the kind of gold that was learned."""
    kind: str = facts.get("kind", "single_label")
    return kind


def kind_of(values: Iterable[Any]) -> str:
    """Tell the kind of gold by the first values of its column: lists, numbers of which some have decimals, or labels.

    >>> kind_of([["a"], []]), kind_of(["1", "2.5"]), kind_of([1.0, 2.0, math.nan]), kind_of(["v1.5", 2])
    ('multi_label', 'regression', 'single_label', 'single_label')
    """
    values = list(values)
    if any(isinstance(value, list) for value in values):
        return "multi_label"
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return "single_label"
    has_decimals = any(math.isfinite(number) and number % 1 for number in numbers)
    return "regression" if has_decimals else "single_label"


def best_threshold(probabilities: Sequence[float], gold: Sequence[bool]) -> float:
    """Return the threshold with the best F1, midway between the probabilities it parts; 0.5 where the label never applies.

    >>> best_threshold([0.9, 0.4, 0.3, 0.1], [True, True, False, False])
    0.35
    """
    ordered = sorted(zip(probabilities, gold, strict=True), reverse=True)
    best, threshold, hits, positives = 0.0, 0.5, 0, sum(gold)
    for taken, (probability, applies) in enumerate(ordered, 1):
        hits += applies
        following = ordered[taken][0] if taken < len(ordered) else 0.0
        f1 = 2 * hits / (taken + positives)
        if f1 > best and following < probability:
            best, threshold = f1, (probability + following) / 2
    return threshold


def _check_numbers(labels: Sequence[str]) -> None:
    """Refuse labels that are numbers with decimals: the first rows, which decided the kind, had whole ones."""
    if kind_of(labels) != "regression":
        return
    number = next(label for label in labels if float(label) % 1)
    raise RecipeError(
        f"the first rows have whole numbers, later ones others, such as {number}",
        place="classification.kind",
        remedy="regression learns them as numbers, single_label as names",
    )


def _check_regression(recipe: Recipe) -> None:
    """Refuse what only labels have."""
    if recipe.classification.class_weights is not None:
        raise RecipeError(
            "numbers have no classes",
            place="classification.class_weights",
            remedy="leave it out",
        )
    if recipe.train.label_smoothing:
        raise RecipeError(
            "numbers have no classes to smooth over",
            place="train.label_smoothing",
            remedy="leave it out",
        )
    if recipe.data.labels is not None:
        raise RecipeError(
            "the gold is a number",
            place="data.labels",
            remedy="leave it out, or set classification.kind",
        )


def _check_weights(weights: Mapping[str, float], labels: Sequence[str]) -> None:
    unknown = [label for label in weights if label not in labels]
    if unknown:
        raise RecipeError(
            f"no label {unknown[0]!r}",
            place="classification.class_weights",
            remedy=suggest(unknown[0], labels),
        )


def _check_sets(rows: Sequence[Row], counts: Mapping[str, int]) -> None:
    """Refuse rows that all have the labels 0 and 1: each has one of them in truth, and a place for either.

    Longer vectors of zeros and ones hold one of them twice, which is refused where they are read.

    Raises:
        DataError: there is nothing to learn.
    """
    are_vectors = set(counts) in ({"0", "1"}, {"false", "true"})
    if are_vectors and all(count == len(rows) for count in counts.values()):
        raise DataError(
            f"every row has both labels, {' and '.join(sorted(counts))}, as if they were vectors of zeros and ones",
            place="data.train",
            remedy="give each row the names of the labels that apply to it, [] where none does",
        )


def _warn_of_many(rows: Sequence[Row], counts: Mapping[str, int]) -> None:
    """Say where nearly every row has a label of its own, or more than half of them and than the texts: it may be another column."""
    if len(rows) < FEW or 2 * len(counts) <= len(rows):
        return
    names = [name for name in (TEXT.name, PAIR.name) if name in rows[0]]
    texts = {tuple(row[name] for name in names) for row in rows}
    if 10 * len(counts) >= 9 * len(rows) or len(counts) > len(texts):
        label = max(counts, key=len)
        console.warn(
            f"data.train: {len(rows)} rows have {len(counts)} labels, such as {label[:SHOWN]!r}{'...' * (len(label) > SHOWN)}; "
            "are data.columns.text and data.columns.label the right columns?"
        )
