"""What fills the gaps of a text: what ``lmkit predict`` answers with a masked model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmkit.batch import Row
from lmkit.errors import DataError
from lmkit.tasks.base import Responder, Task, TooLong

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Fills(Responder):
    """The likeliest tokens at every mask token of every text."""

    def __init__(self, task: Task):
        self.task = task

    def respond(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the five likeliest tokens at every mask token of every text."""
        import torch

        tokenizer = self.task.tokenizer
        mask = tokenizer.mask_token
        answers = []
        for row in rows:
            encoded = tokenizer(row["text"], return_tensors="pt").to(model.device)
            if encoded["input_ids"].shape[1] > self.task.max_length:
                raise TooLong(
                    [(0, encoded["input_ids"].shape[1])],
                    self.task.max_length,
                    place=f"text {row['id'] + 1}",
                )
            positions = (
                (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
            )
            if not positions:
                raise DataError(
                    f"no {mask} in this text: nothing to fill",
                    place=f"text {row['id'] + 1}",
                    remedy=f"put {mask} where a word is to be found",
                )
            with torch.inference_mode():
                probabilities = model(**encoded).logits[0, positions].float().softmax(-1)
            best = probabilities.topk(min(5, probabilities.shape[-1]))
            fills = [
                [
                    {"token": tokenizer.decode([token]).strip(), "score": score}
                    for token, score in zip(tokens, scores, strict=True)
                ]
                for tokens, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
            answers.append({"id": row["id"], "text": row["text"], "fills": fills})
        return answers
