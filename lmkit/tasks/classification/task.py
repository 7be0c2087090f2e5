"""The classification task: windows of a text in, probabilities or a number out.

Texts longer than the model reads are read in windows, whose answers are averaged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmkit.batch import IGNORE, Batch, Columns, Piece, Row, counted, flat, lay_out, pad
from lmkit.tasks.base import Facts, Problem, Task
from lmkit.tasks.windows import encode_windows, padding_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmkit.recipe.schema import Recipe

PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


class Classification(Task):
    def __init__(
        self,
        problem: Problem,
        recipe: Recipe,
        facts: Facts,
        tokenizer: PreTrainedTokenizerBase,
    ):
        super().__init__(problem, recipe, facts, tokenizer)
        self.kind: str = self.facts.get("kind", "single_label")
        self.labels: list[str] = self.facts["labels"]
        self._number = {label: number for number, label in enumerate(self.labels)}
        self._pads_left = False

    def model_config(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": self._number,
            "problem_type": PROBLEM_TYPES[self.kind],
            "pad_token_id": self.tokenizer.pad_token_id,
        }

    def configure(self, model: Any) -> None:
        """Pad on the left where a model (XLNet) sums a text up by its last position. Answers are not rounded to bf16."""
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
        """Return gold as the pieces carry it: a class, the classes that apply, a number; None: the same kind of "does not count"."""
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
        """Return the summed loss: cross-entropy; binary cross-entropy of every label; squared error.

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
        """Return the loss by label that counts, 0 where none does; of the shape of ``labels``."""
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
        """Return the weight by label; balanced: rows / (labels * rows of the label) as in scikit-learn, or negatives / positives."""
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
        """Average probabilities, or numbers, over the windows of the text."""
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
        """Return the labels whose probability reaches its threshold."""
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
