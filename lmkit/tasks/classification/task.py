"""Text classification: one label, several, or a number per text or pair of texts, chosen by the data.

Texts longer than the model reads are read in windows, whose answers are averaged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.batch import IGNORE, Batch, Columns, Piece, Row, counted, flat, lay_out, pad
from lmkit.errors import DataError, RecipeError, suggest
from lmkit.recipe.schema import Recipe
from lmkit.tasks.base import Task
from lmkit.tasks.fields import Field
from lmkit.tasks.windows import encode_windows, padding_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lmkit.metrics.statistics import Statistics

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
KINDS = {"single_label": "label", "multi_label": "labels", "regression": "number"}
PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
FEW = 20  # rows, of which fewer may each have a label of their own
SHOWN = 60  # characters of a label


class Classification(Task):
    name = "classification"
    stage = "finetune"
    model_class = "AutoModelForSequenceClassification"
    family = "bert"
    headlines = ("f1_macro", "spearman")
    cuts_the_middle = True
    fields = (
        TEXT,
        Field("label", "label", aliases=LABEL_NAMES, gold=True),
    )  # see fields_of for the other kinds

    @classmethod
    def fields_of(
        cls,
        recipe: Recipe,
        facts: Mapping[str, Any] | None,
        peek: Callable[[Field], list[Any] | None] | None,
    ) -> tuple[Field, ...]:
        options, label = recipe.classification, cls.fields[-1]
        if facts is None:
            assert peek is not None
            kind = kind_of(peek(label) or []) if options.kind == "auto" else options.kind
            is_pair = PAIR.name in recipe.data.columns or peek(PAIR) is not None
        else:
            kind, is_pair = facts.get("kind", "single_label"), facts.get("is_pair", False)
        gold = Field(label.name, KINDS[kind], LABEL_NAMES, gold=True, separator=options.separator)  # type: ignore[arg-type]
        return (TEXT, PAIR, gold) if is_pair else (TEXT, gold)

    @classmethod
    def learn(cls, rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        first = rows[0] if len(rows) else {"label": ""}
        kind = (
            "multi_label"
            if isinstance(first["label"], list)
            else "regression"
            if isinstance(first["label"], float)
            else "single_label"
        )
        facts: dict[str, Any] = {
            "kind": kind,
            "is_pair": PAIR.name in first,
            "labels": list(labels),
        }
        if kind == "regression":
            return facts | {"labels": ["value"]}
        if len(labels) < (2 if kind == "single_label" else 1):
            found = f"all rows have one label: {labels[0]!r}" if labels else "no row has a label"
            raise DataError(
                found,
                place="data.train",
                remedy="classification needs at least two; is data.columns.label the right column?",
            )
        counts = Counter(
            label
            for row in rows
            for label in (row["label"] if kind == "multi_label" else [row["label"]])
        )
        check = _check_sets if kind == "multi_label" else _warn_of_many
        check(rows, counts)
        return facts | {"rows": len(rows), "counts": [counts[label] for label in labels]}

    @classmethod
    def recover(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        gold = records[0]["gold"] if records else ""
        if isinstance(gold, list):
            return {"kind": "multi_label"}
        if isinstance(gold, (int, float)):
            return {"kind": "regression", "labels": ["value"]}
        return {"kind": "single_label"}

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any], tokenizer: Any):
        super().__init__(recipe, facts, tokenizer)
        self.kind: str = self.facts.get("kind", "single_label")
        self.labels: list[str] = self.facts["labels"]
        self._number = {label: number for number, label in enumerate(self.labels)}
        self._pads_left = False
        self._check_options()

    def _check_options(self) -> None:
        """Refuse what has no effect on this kind of gold, and weights of labels that are not there."""
        options = self.recipe.classification
        weights = options.class_weights
        if (
            options.kind == "auto"
            and self.kind == "single_label"
            and "counts" in self.facts
            and kind_of(self.labels) == "regression"
        ):
            number = next(label for label in self.labels if float(label) % 1)
            raise RecipeError(
                f"the first rows have whole numbers, later ones others, such as {number}",
                place="classification.kind",
                remedy="regression learns them as numbers, single_label as names",
            )
        if weights is not None and self.kind == "regression":
            raise RecipeError(
                "numbers have no classes",
                place="classification.class_weights",
                remedy="leave it out",
            )
        if self.recipe.train.label_smoothing and self.kind == "regression":
            raise RecipeError(
                "numbers have no classes to smooth over",
                place="train.label_smoothing",
                remedy="leave it out",
            )
        if self.recipe.data.labels is not None and self.kind == "regression":
            raise RecipeError(
                "the gold is a number",
                place="data.labels",
                remedy="leave it out, or set classification.kind",
            )
        if options.threshold != "tuned" and self.kind != "multi_label":
            raise RecipeError(
                f"has no effect on {self.kind}",
                place="classification.threshold",
                remedy="leave it out",
            )
        if isinstance(weights, dict) and (
            unknown := [label for label in weights if label not in self._number]
        ):
            raise RecipeError(
                f"no label {unknown[0]!r}",
                place="classification.class_weights",
                remedy=suggest(unknown[0], self.labels),
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        return {
            "single_label": ("f1_macro", "accuracy", "mcc", "loss"),
            "multi_label": ("f1_macro", "f1_micro", "f1_samples", "accuracy", "mcc", "loss"),
            "regression": ("spearman", "pearson", "mse", "loss"),
        }[self.kind]

    def model_config(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": self._number,
            "problem_type": PROBLEM_TYPES[self.kind],
            "pad_token_id": self.tokenizer.pad_token_id,
        }

    def configure(self, model: Any) -> None:
        """Some (XLNet) sum a text up by the last position of the row, be it padding. Answers are not rounded to bf16."""
        from lmkit.heads import head_in_fp32

        head_in_fp32(model)
        self._pads_left = getattr(model.config, "summary_type", None) == "last"

    def encode(self, rows: Sequence[Row]) -> Columns:
        pairs = [row["text_pair"] for row in rows] if self.facts.get("is_pair") else None
        columns, _, _ = encode_windows(self, rows, [row["text"] for row in rows], pairs)
        columns["label"] = [self._encoded(rows[row].get("label")) for row in columns["row"]]
        windows = Counter(columns["row"])
        columns["weight"] = [
            1 / windows[row] for row in columns["row"]
        ]  # a long text counts once, as a short one does
        return columns

    def _encoded(self, gold: Any) -> Any:
        """Gold as the pieces carry it: a class, the classes that apply, a number; None: the same kind of "does not count"."""
        if self.kind == "single_label":
            return IGNORE if gold is None else self._number[gold]
        if self.kind == "multi_label":
            return [IGNORE] if gold is None else [self._number[label] for label in gold]
        return math.nan if gold is None else gold

    def collate(
        self, examples: Sequence[Sequence[Piece]], *, epoch: int = 0, packed: bool = False
    ) -> Batch:
        """Pad; labels are ``(pieces,)`` classes; ``(pieces, labels)`` zeros and ones; ``(pieces, 1)`` numbers, NaN where none counts.

        The weights of a text's windows add up to one, so a long text counts once, as a short one does.
        """
        import torch

        batch = lay_out(
            examples, columns=padding_of(self, examples), packed=False, left=self._pads_left
        )
        gold = [piece["label"] for piece in flat(examples)]
        if self.kind == "single_label":
            batch.labels = torch.tensor(gold)
        elif self.kind == "multi_label":
            size = len(self.labels)
            batch.labels = pad(
                [
                    [IGNORE] * size
                    if classes == [IGNORE]
                    else [int(n in classes) for n in range(size)]
                    for classes in gold
                ],
                IGNORE,
            )
        else:
            batch.labels = torch.tensor(gold, dtype=torch.float32)[:, None]
        weights = [piece["weight"] for piece in flat(examples)]
        batch.weights = torch.tensor(weights, dtype=torch.float32)
        return batch

    def loss(self, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        """The summed loss: cross-entropy; binary cross-entropy of every label; squared error.

        ``classification.class_weights`` multiplies the loss of a label's rows (of its positives, where there are several
        labels). The sum is divided by the number of rows, not by their weights, so a step does not depend on its company.
        """
        assert batch.weights is not None
        logits, labels = self.logits(model, batch)
        losses = self._losses(logits, labels, training=model.training)
        return (losses.reshape(len(labels), -1).sum(1) * batch.weights).sum()

    def _losses(
        self, logits: torch.Tensor, labels: torch.Tensor, *, training: bool
    ) -> torch.Tensor:
        """Loss by label that counts, 0 where none does; of the shape of ``labels``."""
        import torch
        from torch.nn import functional

        logits = logits.float()
        weight = (
            torch.tensor(self._weights(), device=logits.device)
            if training and self.recipe.classification.class_weights
            else None
        )
        smoothing = self.recipe.train.label_smoothing if training else 0.0
        if self.kind == "single_label":
            return functional.cross_entropy(
                logits,
                labels,
                weight=weight,
                ignore_index=IGNORE,
                reduction="none",
                label_smoothing=smoothing,
            )
        counts = counted(labels)
        if self.kind == "regression":
            return (logits - labels.nan_to_num()).square() * counts
        target = labels.clamp(min=0).float() * (1 - smoothing) + smoothing / 2
        return (
            functional.binary_cross_entropy_with_logits(
                logits, target, pos_weight=weight, reduction="none"
            )
            * counts
        )

    def _weights(self) -> list[float]:
        """Weight by label; balanced: rows / (labels * rows of the label) as in scikit-learn, or negatives / positives."""
        weights = self.recipe.classification.class_weights
        if isinstance(weights, dict):
            return [float(weights.get(label, 1.0)) for label in self.labels]
        rows, counts = self.facts["rows"], self.facts["counts"]
        if self.kind == "multi_label":
            return [(rows - count) / count if 0 < count < rows else 1.0 for count in counts]
        return [rows / (len(counts) * count) if count else 1.0 for count in counts]

    def predict(
        self, model: PreTrainedModel, batch: Batch, pieces: Sequence[Piece]
    ) -> list[dict[str, Any]]:
        logits, labels = self.logits(model, batch)
        losses = self._losses(logits, labels, training=False).reshape(len(pieces), -1).sum(1)
        items = counted(labels).reshape(len(pieces), -1).sum(1)
        scores = logits.double()
        if self.kind != "regression":
            scores = scores.softmax(-1) if self.kind == "single_label" else scores.sigmoid()
        return [
            {"scores": row, "nll": loss, "items": count}
            for row, loss, count in zip(
                scores.tolist(), losses.tolist(), items.tolist(), strict=True
            )
        ]

    def combine(self, row: Row, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Probabilities, or numbers, averaged over the windows of the text."""
        means = [
            sum(scores) / len(parts)
            for scores in zip(*(part["scores"] for part in parts), strict=True)
        ]
        record: Row = {
            "id": row["id"],
            **{field: row[field] for field in ("text", "text_pair") if field in row},
            "gold": row.get("label"),
        }
        sums = {"nll": sum(part["nll"] for part in parts) / len(parts), "items": parts[0]["items"]}
        if self.kind == "regression":
            return record | {"prediction": means[0], "score": None} | sums
        probabilities = dict(zip(self.labels, means, strict=True))
        chosen: Any = (
            self._apply(means)
            if self.kind == "multi_label"
            else max(self.labels, key=probabilities.__getitem__)
        )
        return (
            record
            | {"prediction": chosen, "score": max(means), "probabilities": probabilities}
            | sums
        )

    def _apply(self, probabilities: Sequence[float]) -> list[str]:
        """The labels whose probability reaches its threshold."""
        fixed = self.recipe.classification.threshold
        thresholds = (
            self.facts.get("thresholds") if fixed == "tuned" else [fixed] * len(self.labels)
        )
        thresholds = thresholds or [0.5] * len(self.labels)
        return [
            label
            for label, p, least in zip(self.labels, probabilities, thresholds, strict=True)
            if p >= least
        ]

    def text_rows(self, texts: Sequence[str]) -> list[Row]:
        """Raw texts -> rows; of a pair, with a tab between the two.

        Raises:
            DataError: the model reads pairs, and a text has no tab or nothing on one side of it.
        """
        if not self.facts.get("is_pair"):
            return super().text_rows(texts)
        pairs = [text.partition("\t") for text in texts]
        for number, (first, _, second) in enumerate(pairs, 1):
            if not (first.strip() and second.strip()):
                remedy = "write both with a tab between them, or give --file with the columns text and text_pair"
                raise DataError(
                    "this model reads pairs of texts, and here is one",
                    place=f"text {number}",
                    remedy=remedy,
                )
        return [
            {"id": number, "text": first, "text_pair": second}
            for number, (first, _, second) in enumerate(pairs)
        ]

    @property
    def tunes(self) -> bool:
        return self.kind == "multi_label" and self.recipe.classification.threshold == "tuned"

    def tune(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The threshold of each label with the best F1 on these records."""
        return {
            "thresholds": [
                best_threshold(
                    [r["probabilities"][label] for r in records],
                    [label in r["gold"] for r in records],
                )
                for label in self.labels
            ]
        }

    def score(self, records: Sequence[Mapping[str, Any]]) -> Statistics:
        gold, predicted = [r["gold"] for r in records], [r["prediction"] for r in records]
        if self.kind == "multi_label":
            from lmkit.metrics.multi_label import multi_label_statistics

            return multi_label_statistics(gold, predicted, self.labels)
        if self.kind == "regression":
            from lmkit.metrics.regression import regression_statistics

            return regression_statistics(gold, predicted)
        from lmkit.metrics.classification import classification_statistics

        return classification_statistics(gold, predicted, self.labels)


def kind_of(values: Iterable[Any]) -> str:
    """What the first values of the label column are: lists, numbers of which some have decimals, or labels.

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
    return (
        "regression"
        if any(math.isfinite(number) and number % 1 for number in numbers)
        else "single_label"
    )


def _check_sets(rows: Sequence[Row], counts: Mapping[str, int]) -> None:
    """Refuse rows that all have the labels 0 and 1: each has one of them in truth, and a place for either.

    Longer vectors of zeros and ones hold one of them twice, which is refused where they are read.

    Raises:
        DataError: there is nothing to learn.
    """
    if set(counts) in ({"0", "1"}, {"false", "true"}) and all(
        count == len(rows) for count in counts.values()
    ):
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
    if 10 * len(counts) >= 9 * len(rows) or len(counts) > len(
        {tuple(row[name] for name in names) for row in rows}
    ):
        label = max(counts, key=len)
        console.warn(
            f"data.train: {len(rows)} rows have {len(counts)} labels, such as {label[:SHOWN]!r}{'...' * (len(label) > SHOWN)}; "
            "are data.columns.text and data.columns.label the right columns?"
        )


def best_threshold(probabilities: Sequence[float], gold: Sequence[bool]) -> float:
    """The threshold with the best F1, midway between the probabilities it parts; 0.5 where the label never applies.

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
