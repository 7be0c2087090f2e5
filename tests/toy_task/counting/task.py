"""The task: tokens in, a number out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lmkit.batch import Batch, Columns, Piece, Row, counted, flat, lay_out
from lmkit.tasks.base import Task


class CountingTask(Task):
    def model_config(self) -> dict[str, Any]:
        pad = self.tokenizer.pad_token_id
        return {"num_labels": 1, "problem_type": "regression", "pad_token_id": pad}

    def encode(self, rows: Sequence[Row]) -> Columns:
        texts = [row["text"] for row in rows]
        ids = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        scale = self.recipe.counting.scale  # type: ignore[attr-defined]
        counts = [row.get("count", math.nan) / scale for row in rows]
        lengths = [len(each) for each in ids]
        return {"input_ids": ids, "count": counts, "row": list(range(len(rows))), "length": lengths}

    def collate(
        self, examples: Sequence[Sequence[Piece]], *, epoch: int = 0, packed: bool = False
    ) -> Batch:
        pads = {"input_ids": self.tokenizer.pad_token_id}
        batch = lay_out(examples, columns=pads, packed=False)
        counts = [[piece["count"]] for piece in flat(examples)]
        batch.labels = torch.tensor(counts, dtype=torch.float32)
        return batch

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        return self._losses(*self.logits(model, batch)).sum()

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (logits.float() - labels.nan_to_num()).square() * counted(labels)

    def predict(self, model: Any, batch: Batch, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        logits, labels = self.logits(model, batch)
        losses = self._losses(logits, labels)[:, 0].tolist()
        items = counted(labels)[:, 0].tolist()
        numbers = logits[:, 0].float().tolist()
        return [
            {"number": number, "nll": loss, "items": int(item)}
            for number, loss, item in zip(numbers, losses, items, strict=True)
        ]

    def combine(self, row: Row, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        (part,) = parts
        scale = self.recipe.counting.scale  # type: ignore[attr-defined]
        prediction = max(0, round(part["number"] * scale))
        record = {"id": row["id"], "text": row["text"], "gold": row.get("count")}
        sums = {"nll": part["nll"], "items": part["items"]}
        return record | {"prediction": prediction, "score": None} | sums
