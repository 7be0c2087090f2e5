"""Causal language modelling: predict every token from the ones before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmkit.batch import IGNORE, Batch, Columns, Piece, Row, lay_out
from lmkit.tasks.base import Task, TooLong
from lmkit.tasks.generation import check_beams
from lmkit.tasks.language import LanguageModeling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmkit.recipe.schema import Recipe


class CausalLanguageModeling(LanguageModeling):
    name = "clm"
    model_class = "AutoModelForCausalLM"
    family = "llama"
    counts_bytes = True
    causal = True

    def __init__(
        self, recipe: Recipe, facts: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
    ):
        super().__init__(recipe, facts, tokenizer)
        check_beams(recipe.generation)

    def for_evaluation(self) -> Task:
        stride = self.recipe.eval.stride
        if stride is None:
            return self
        sliding = CausalLanguageModeling(self.recipe, self.facts, self.tokenizer)
        sliding.reading = ("stride", stride)
        return sliding

    def encode(self, rows: Sequence[Row]) -> Columns:
        """Blocks of a document whose labels are the next tokens, across the cut too: each is predicted once."""
        columns: Columns = {"input_ids": [], "labels": [], "row": [], "length": []}
        start = (
            self.tokenizer.bos_token_id
            if self.tokenizer.bos_token_id is not None
            else self.tokenizer.eos_token_id
        )
        end = self.tokenizer.eos_token_id
        encoded = self.tokenizer(
            [row["text"] for row in rows], add_special_tokens=False, verbose=False
        )["input_ids"]
        for number, ids in enumerate(encoded):
            tokens = [start] * (start is not None) + ids + [end] * (end is not None)
            for inputs, labels in blocks(tokens, self.max_length, *self.reading[1:]):
                columns["input_ids"].append(inputs)
                columns["labels"].append(labels)
                columns["row"].append(number)
                columns["length"].append(len(inputs))
        return columns

    def collate(
        self, examples: Sequence[Sequence[Piece]], *, epoch: int = 0, packed: bool = False
    ) -> Batch:
        return lay_out(
            examples,
            columns={"input_ids": self.tokenizer.pad_token_id, "labels": IGNORE},
            packed=packed,
        )

    def inputs(self, model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
        return super().inputs(model, batch) | {
            "use_cache": False
        }  # every layer would copy its keys and values into one

    def respond(self, model: PreTrainedModel, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """A continuation of every text: greedy, or the best of ``generation.num_beams`` beams."""
        import torch

        from lmkit.heads import num_positions, unwrap

        generation, answers = self.recipe.generation, []
        limit = num_positions(unwrap(model))
        for row in rows:
            ids = self.tokenizer(row["text"], add_special_tokens=False, verbose=False)["input_ids"]
            start = (
                self.tokenizer.bos_token_id
                if self.tokenizer.bos_token_id is not None
                else self.tokenizer.eos_token_id
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
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            text = self.tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)
            answers.append({"id": row["id"], "text": row["text"], "continuation": text})
        return answers


def blocks(
    tokens: Sequence[int], size: int, stride: int | None = None
) -> list[tuple[list[int], list[int]]]:
    """Inputs and labels of a document in blocks of at most ``size``; every token but the first is a label once.

    With ``stride`` the blocks overlap: each begins ``stride`` tokens after the one before and its labels are the tokens
    that no earlier block has, so that all but those of the first block are predicted from at least ``size - stride`` others.

    >>> blocks([1, 2, 3, 4], 2)
    [([1, 2], [2, 3]), ([3], [4])]
    >>> blocks([1, 2, 3, 4], 2, 1)
    [([1, 2], [2, 3]), ([2, 3], [-100, 4])]
    """
    found, done = [], 0  # labels so far
    for start in range(0, len(tokens) - 1, stride or size):
        labels = list(tokens[start + 1 : start + 1 + size])
        known = done - start
        found.append((list(tokens[start : start + len(labels)]), [IGNORE] * known + labels[known:]))
        done = start + len(labels)
        if done == len(tokens) - 1:
            break
    return found
