"""The causal task: blocks of a document in, the next tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmkit.batch import IGNORE, Batch, Columns, Piece, Row, lay_out
from lmkit.tasks.language import LanguageModeling

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CausalLanguageModeling(LanguageModeling):
    def encode(self, rows: Sequence[Row]) -> Columns:
        """Cut documents into blocks whose labels are the next tokens, across the cut too: each is predicted once."""
        return self.encode_blocks(rows)

    def encode_blocks(self, rows: Sequence[Row], stride: int | None = None) -> Columns:
        """Make columns of the ``blocks`` of documents."""
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
            for inputs, labels in blocks(tokens, self.max_length, stride):
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


def blocks(
    tokens: Sequence[int], size: int, stride: int | None = None
) -> list[tuple[list[int], list[int]]]:
    """Return inputs and labels of a document in blocks of at most ``size``; every token but the first is a label once.

    With ``stride`` the blocks overlap: each begins ``stride`` tokens after the one before and its labels are the tokens
    that no earlier block has, so that all but those of the first block are predicted from at least ``size - stride`` others.

    >>> blocks([1, 2, 3, 4], 2)
    [([1, 2], [2, 3]), ([3], [4])]
    >>> blocks([1, 2, 3, 4], 2, 1)
    [([1, 2], [2, 3]), ([2, 3], [-100, 4])]
    """
    parts, done = [], 0  # labels so far
    for start in range(0, len(tokens) - 1, stride or size):
        labels = list(tokens[start + 1 : start + 1 + size])
        scored = done - start
        parts.append(
            (list(tokens[start : start + len(labels)]), [IGNORE] * scored + labels[scored:])
        )
        done = start + len(labels)
        if done == len(tokens) - 1:
            break
    return parts
