"""Pseudo-perplexity of masked models (Salazar et al. 2020): every token is hidden once, alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmkit.batch import IGNORE, Batch, Piece, Row, flat, pad
from lmkit.records import Record
from lmkit.tasks.base import Scorer
from lmkit.tasks.language import EVALUATION_EPOCH

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lmkit.metrics.statistics import Statistics


class PseudoPerplexity(Scorer):
    """Masked language modelling as ``eval.pseudo_perplexity`` evaluates it: its own metrics, and ``pseudo_perplexity``.

    That is exp of the mean negative log-likelihood of each token given all others of its window. Special tokens are
    neither hidden nor counted. It costs a forward pass per token, in batches of the size of all others.
    """

    def collate(
        self,
        examples: Sequence[Sequence[Piece]],
        *,
        epoch: int = EVALUATION_EPOCH,
        packed: bool = False,
    ) -> Batch:
        """Make the batch of masked language modelling, and in ``extra``, ``(rows, longest)``: ``whole``, the tokens to hide, and ``seen``."""
        assert not packed, "documents that share a row would be hidden together"
        batch = self.task.collate(examples, epoch=epoch)
        whole = [
            [
                token if word >= 0 else IGNORE
                for token, word in zip(piece["input_ids"], piece["words"], strict=True)
            ]
            for piece in flat(examples)
        ]
        batch.extra["whole"] = pad(whole, IGNORE)
        batch.extra["seen"] = pad([piece["input_ids"] for piece in flat(examples)], 0)
        return batch

    def predict(
        self, model: PreTrainedModel, batch: Batch, pieces: Sequence[Piece]
    ) -> list[dict[str, Any]]:
        import torch
        from torch.nn.functional import cross_entropy

        parts = self.task.predict(model, batch, pieces)
        whole = batch.extra["whole"]
        ordinal = (whole != IGNORE).cumsum(1)
        is_there = batch.inputs["attention_mask"].bool()
        ids = torch.where(is_there, batch.extra["seen"], batch.inputs["input_ids"])
        sums = torch.zeros(len(whole), dtype=torch.double, device=whole.device)
        for turn in range(1, int(ordinal.max()) + 1):
            hidden = (ordinal == turn) & (whole != IGNORE)
            rows = hidden.any(1)
            inputs = {name: tensor[rows] for name, tensor in batch.inputs.items()}
            inputs["input_ids"] = torch.where(hidden, self.tokenizer.mask_token_id, ids)[rows]
            hiding = Batch(inputs, torch.where(hidden, whole, IGNORE)[rows])
            logits, labels = self.logits(model, hiding)
            # one label a row, so the flat order is that of the rows
            sums[rows] += cross_entropy(
                logits.flatten(0, -2).float(), labels.flatten(), reduction="none"
            ).double()
        counts = (whole != IGNORE).sum(1).tolist()
        return [
            part | {"pseudo_nll": nll, "pseudo_items": count}
            for part, nll, count in zip(parts, sums.tolist(), counts, strict=True)
        ]

    def combine(self, row: Row, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self.task.combine(row, parts) | {
            key: sum(part[key] for part in parts) for key in ("pseudo_nll", "pseudo_items")
        }


def add_pseudo_perplexity(masked: Statistics, records: Sequence[Record]) -> Statistics:
    """Return the statistics with one metric more."""
    import numpy as np

    from lmkit.metrics.statistics import ratio

    own = np.array(
        [[record["pseudo_nll"], record["pseudo_items"]] for record in records], np.float64
    )

    def with_pseudo(sums: Any) -> dict[str, Any]:
        with np.errstate(over="ignore"):
            pseudo = np.exp(ratio(sums[..., -2], sums[..., -1], undefined=math.nan))
        return masked.metrics(sums[..., :-2]) | {"pseudo_perplexity": pseudo}

    counts = np.concatenate([masked.counts, own], axis=1)
    return replace(masked, counts=counts, metrics=with_pseudo)
