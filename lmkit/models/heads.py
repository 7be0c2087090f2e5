"""Logits only where they are needed: the head of a language model runs on chosen positions alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lmkit.tasks.base import MODEL_INPUTS, Batch

if TYPE_CHECKING:
    import torch


def unwrap(model: Any) -> Any:
    """The Hugging Face model inside PEFT's wrapper. There is no other: processes sum their gradients beside the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def num_positions(model: Any) -> int | None:
    """How many tokens the model has positions for; None: there is no table of them (T5, XLNet, Mamba).

    The positions of RoBERTa and its kin begin behind that of the padding, so it reads two fewer than its table holds.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None or limit < 1:  # XLNet says -1
        return None
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    padding = next((table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None), None)
    return int(limit) if padding is None else int(limit) - padding - 1


def crf_of(model: Any) -> Any:
    """The CRF layer of a word tagger (``tagging.crf``), or None."""
    return getattr(unwrap(model), "crf", None)


@contextmanager
def only_at(model: Any, chosen: torch.Tensor) -> Iterator[bool]:
    """While active, the backbone passes on the hidden states of the chosen positions only.

    A forward hook on ``base_model`` replaces ``last_hidden_state`` ``(batch, length, width)`` by
    ``(1, chosen, width)`` before any head runs, whatever the architecture.

    Args:
        chosen: ``(batch, length)`` booleans.

    Yields:
        False where the model has no backbone of its own, so that logits come out whole.
    """
    inner = unwrap(model)
    backbone = inner.base_model
    if backbone is inner:
        yield False
        return

    def keep(module: Any, arguments: Any, output: Any) -> Any:
        output["last_hidden_state"] = output["last_hidden_state"][chosen][None]
        return output

    handle = backbone.register_forward_hook(keep)
    try:
        yield True
    finally:
        handle.remove()


def logits_at(model: Any, batch: Batch, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(1, chosen, vocabulary)`` and labels ``(1, chosen)`` at the chosen positions."""
    inputs = {key: value for key, value in batch.items() if key in MODEL_INPUTS}
    with only_at(model, chosen) as selected:
        logits = model(**inputs).logits
    return logits if selected else logits[chosen][None], batch["labels"][chosen][None]
