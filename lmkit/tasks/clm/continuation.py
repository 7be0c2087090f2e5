"""How a text goes on: what ``lmkit predict`` answers with a causal model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmkit.batch import Row
from lmkit.tasks.base import Responder, Task, TooLong

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Continuation(Responder):
    """A continuation of every text."""

    def __init__(self, task: Task):
        self.task = task

    def respond(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Continue every text: greedily, or the best of ``generation.num_beams`` beams."""
        import torch

        from lmkit.heads import num_positions, unwrap

        tokenizer = self.task.tokenizer
        generation, answers = self.task.recipe.generation, []
        limit = num_positions(unwrap(model))
        for row in rows:
            ids = tokenizer(row["text"], add_special_tokens=False, verbose=False)["input_ids"]
            start = (
                tokenizer.bos_token_id
                if tokenizer.bos_token_id is not None
                else tokenizer.eos_token_id
            )
            prompt = [start] * (start is not None) + ids
            room = (
                generation.max_new_tokens
                if limit is None
                else min(generation.max_new_tokens, limit - len(prompt))
            )
            if room < 1:
                raise TooLong([(0, len(prompt))], limit or 0, place=f"text {row['id'] + 1}")
            inputs = torch.tensor([prompt], device=model.device)
            with torch.inference_mode():
                output = model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=room,
                    num_beams=generation.num_beams,
                    length_penalty=generation.length_penalty if generation.num_beams > 1 else None,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
            text = tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)
            answers.append({"id": row["id"], "text": row["text"], "continuation": text})
        return answers
