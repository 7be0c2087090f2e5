"""What the language-modelling tasks share: predictions are sums per document, and their score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lmkit.batch import IGNORE, Batch, Piece, Row
from lmkit.records import Record
from lmkit.tasks.answers import Answer, Tokens
from lmkit.tasks.base import Facts, Metric, Peek, Problem, Task
from lmkit.tasks.fields import Field

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lmkit.metrics.statistics import Statistics
    from lmkit.recipe.schema import Recipe

# what is hidden is the same at every evaluation, and unlike any training epoch's
EVALUATION_EPOCH = 1_000_000_007
MEASURES: tuple[Metric, ...] = (
    Metric("loss", less_is_better=True),
    Metric("perplexity", less_is_better=True),
    Metric("accuracy"),
)


class LanguageProblem(Problem):
    """Predict tokens of the text itself; the unit of the statistics is the document."""

    stage = "pretrain"
    measures = MEASURES
    select_by = "loss"
    packs = True
    # every token is predicted once, so bits per byte of the text mean something
    counts_bytes: ClassVar[bool] = False

    def fields(
        self, recipe: Recipe, facts: Facts | None = None, peek: Peek | None = None
    ) -> tuple[Field, ...]:
        return (Field("text", "text", aliases=("content", "document", "sentence")),)

    def answer(self, facts: Facts) -> Answer:
        return Tokens()

    def score(self, facts: Facts, records: Sequence[Record]) -> Statistics:
        from lmkit.metrics.language_model import language_model_statistics

        nll, items, num_bytes, correct = (
            [record[key] for record in records] for key in ("nll", "items", "bytes", "correct")
        )
        return language_model_statistics(
            nll, items, num_bytes if self.counts_bytes else None, correct
        )


class LanguageModeling(Task):
    """Predict tokens of the text itself; the unit of the statistics is the document."""

    predicts_tokens = True

    def logits(self, model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return those of the tokens to predict alone: ``(1, tokens, vocabulary)`` and ``(1, tokens)``."""
        from lmkit.heads import logits_at

        return logits_at(model, self.inputs(model, batch), batch.labels, batch.labels != IGNORE)

    def predict(
        self, model: PreTrainedModel, batch: Batch, pieces: Sequence[Piece]
    ) -> list[dict[str, Any]]:
        import torch
        from torch.nn.functional import cross_entropy

        logits, labels = self.logits(model, batch)
        counted = batch.labels != IGNORE
        flat_labels, flat_logits = labels.flatten(), logits.flatten(0, -2).float()
        losses = cross_entropy(flat_logits, flat_labels, reduction="none").double()
        hits = (flat_logits.argmax(-1) == flat_labels).double()
        owner = torch.arange(len(counted), device=counted.device)[:, None].expand_as(counted)[
            counted
        ]
        sums = torch.zeros(3, len(counted), dtype=torch.double, device=counted.device)
        sums.index_add_(1, owner, torch.stack([losses, torch.ones_like(losses), hits]))
        return [
            {"nll": nll, "items": int(items), "correct": int(correct)}
            for nll, items, correct in sums.T.tolist()
        ]

    def combine(self, row: Row, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        sums = {key: sum(part[key] for part in parts) for key in ("nll", "items", "correct")}
        loss = sums["nll"] / sums["items"] if sums["items"] else None
        return {
            "id": row["id"],
            "text": row["text"],
            "score": loss,
            "bytes": len(row["text"].encode()),
            **sums,
        }
