"""Texts longer than the model reads, in overlapping windows (or cut, or refused): ``data.long_text``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lmkit.tasks.base import Columns, Piece, Row, Task, TooLong


def encode_windows(task: Task, rows: Sequence[Row], texts: Sequence[Any], **options: Any) -> tuple[Columns, Any, list[int]]:
    """Tokenise with ``data.long_text``: overlapping windows, the head alone, or an error at the first too long.

    Returns:
        The columns that the model reads with ``row``, ``length`` and ``cut`` (1 where the rest of the text
        was left out), the tokenizer's whole answer, and the positions in it that the columns keep.
    """
    data = task.recipe.data
    special = task.tokenizer.num_special_tokens_to_add()
    stride = int(data.overlap * max(0, task.max_length - special - 1))
    encoded = task.tokenizer(
        texts, truncation=True, max_length=task.max_length, stride=stride, return_overflowing_tokens=True, **options
    )
    owners = list(encoded["overflow_to_sample_mapping"])
    if data.long_text == "error" and (long := sorted({row for before, row in pairwise(owners) if before == row})):
        lengths = task.tokenizer([texts[row] for row in long], verbose=False, **options)["input_ids"]
        raise TooLong([(row, len(ids)) for row, ids in zip(long, lengths, strict=True)], task.max_length)
    kept = [i for i, row in enumerate(owners) if data.long_text != "head" or i == 0 or owners[i - 1] != row]
    columns: Columns = {name: [encoded[name][i] for i in kept] for name in ("input_ids", "token_type_ids") if name in encoded}
    columns["row"] = [owners[i] for i in kept]
    columns["length"] = [len(ids) for ids in columns["input_ids"]]
    columns["cut"] = [int(data.long_text == "head" and i + 1 < len(owners) and owners[i + 1] == owners[i]) for i in kept]
    return columns, encoded, kept


def padding_of(task: Task, examples: Sequence[Sequence[Piece]]) -> dict[str, int]:
    """The columns that the model reads -> their padding values."""
    columns = {"input_ids": task.tokenizer.pad_token_id}
    if "token_type_ids" in examples[0][0]:
        columns["token_type_ids"] = getattr(task.tokenizer, "pad_token_type_id", 0)
    return columns
