"""Embeddings of tokens that a base does not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmkit.errors import RecipeError
from lmkit.models.tokenizer import num_tokens, pieces_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def grow_embeddings(
    model: Any, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]
) -> list[int]:
    """Add rows for tokens that a base does not know: each the mean of the rows of the pieces its text was read as.

    Args:
        tokens: those of ``tokenizer.add_tokens``; whatever else the embeddings have no row for is new as well.

    Returns:
        The ids of the new tokens.
    """
    rows = model.get_input_embeddings().num_embeddings
    added = tokenizer.convert_tokens_to_ids(list(tokens))
    new = sorted({*added, *range(rows, num_tokens(tokenizer))})
    if new:
        _grow(model, tokenizer, new)
    return new


def _grow(model: Any, tokenizer: PreTrainedTokenizerBase, new: list[int]) -> None:
    import torch

    if new[-1] >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(new[-1] + 1, mean_resizing=False)
    output = model.get_output_embeddings()
    if output is not None and output.weight.shape[0] <= new[-1]:
        raise RecipeError(
            f"this {model.config.model_type} has a vocabulary for each language, and only one would grow",
            place="tokenizer.add_tokens",
            remedy="leave it out",
        )
    if not tokenizer.is_fast:
        return
    tables = [model.get_input_embeddings().weight]
    if output is not None and output.weight is not tables[0]:
        tables.append(output.weight)
    with torch.no_grad():
        for token, pieces in pieces_of(tokenizer, new).items():
            for weight in tables:
                rows = weight[pieces] if pieces else weight[: new[0]]
                weight[token] = rows.mean(0)
