"""Text classification: one label per text; texts longer than the model reads are read in windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmkit.errors import DataError
from lmkit.recipe.schema import Recipe
from lmkit.tasks.base import IGNORE, Batch, Columns, Piece, Row, Task, flat, lay_out
from lmkit.tasks.fields import Field
from lmkit.tasks.windows import encode_windows, padding_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lmkit.metrics.statistics import Statistics


class Classification(Task):
    name = "classification"
    stage = "finetune"
    model_class = "AutoModelForSequenceClassification"
    family = "bert"
    fields = (
        Field("text", "text", aliases=("sentence", "content", "review", "document")),
        Field("label", "label", aliases=("labels", "class", "category", "intent"), gold=True),
    )
    metrics = ("f1_macro", "accuracy", "mcc", "loss")

    @classmethod
    def learn(cls, rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        if len(labels) < 2:
            raise DataError(
                f"all rows have one label: {labels[0]!r}",
                place="data.train",
                remedy="classification needs at least two; is data.columns.label the right column?",
            )
        return {"labels": list(labels)}

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any], tokenizer: Any):
        super().__init__(recipe, facts, tokenizer)
        self.labels: list[str] = self.facts["labels"]
        self._number = {label: number for number, label in enumerate(self.labels)}

    def model_config(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": self._number,
            "problem_type": "single_label_classification",
            "pad_token_id": self.tokenizer.pad_token_id,
        }

    def encode(self, rows: Sequence[Row]) -> Columns:
        columns, _, _ = encode_windows(self, rows, [row["text"] for row in rows])
        columns["label"] = [self._number[rows[row]["label"]] if "label" in rows[row] else IGNORE for row in columns["row"]]
        return columns

    def collate(self, examples: Sequence[Sequence[Piece]], *, epoch: int = 0, packed: bool = False) -> Batch:
        import torch

        batch = lay_out(examples, columns=padding_of(self, examples), packed=False)
        batch["labels"] = torch.tensor([piece["label"] for piece in flat(examples)])
        return batch

    def predict(self, model: PreTrainedModel, batch: Batch, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        logits, _ = self.logits(model, batch)
        log_probabilities = logits.float().log_softmax(-1).tolist()
        return [
            {
                "log_probabilities": row,
                "nll": -row[piece["label"]] if piece["label"] != IGNORE else 0.0,
                "items": int(piece["label"] != IGNORE),
            }
            for row, piece in zip(log_probabilities, pieces, strict=True)
        ]

    def combine(self, row: Row, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Probabilities averaged over the windows of the text."""
        import numpy as np

        probabilities = np.exp([part["log_probabilities"] for part in parts]).mean(0)
        best = int(probabilities.argmax())
        record = {
            "id": row["id"],
            "text": row["text"],
            "gold": row.get("label"),
            "prediction": self.labels[best],
            "score": float(probabilities[best]),
            "probabilities": dict(zip(self.labels, probabilities.tolist(), strict=True)),
        }
        return record | {key: sum(part[key] for part in parts) for key in ("nll", "items")}

    def score(self, records: Sequence[Mapping[str, Any]]) -> Statistics:
        from lmkit.metrics.classification import classification_statistics

        return classification_statistics([r["gold"] for r in records], [r["prediction"] for r in records], self.labels)
