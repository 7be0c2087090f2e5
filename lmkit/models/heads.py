"""Logits only where they are needed: the head of a language model runs on chosen positions alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def unwrap(model: Any) -> Any:
    """The Hugging Face model inside PEFT's wrapper. There is no other: processes sum their gradients beside the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def num_positions(model: Any) -> int | None:
    """How many tokens the model has positions for; None: there is no table of them (T5, XLNet, Mamba).

    The positions of RoBERTa and its kin begin behind that of the padding, so it reads two fewer than its table holds.
    """
    names = ("max_position_embeddings", "max_seq_len")  # MPT has the second
    limit = next((getattr(model.config, name) for name in names if hasattr(model.config, name)), None)
    if limit is None or limit < 1:  # XLNet says -1
        return None
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    padding = next((table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None), None)
    return int(limit) if padding is None else int(limit) - padding - 1


def crf_of(model: Any) -> Any:
    """The CRF layer of a word tagger (``tagging.crf``), or None."""
    return getattr(unwrap(model), "crf", None)


@dataclass
class Selection:
    """Whether positions were selected in the last forward pass; else its logits are whole."""

    happened: bool = False


@contextmanager
def only_at(model: Any, chosen: torch.Tensor) -> Iterator[Selection]:
    """While active, the backbone passes on the hidden states of the chosen positions only.

    A forward hook on ``base_model`` replaces ``last_hidden_state`` ``(batch, length, width)`` by
    ``(1, chosen, width)`` before any head runs, whatever the architecture.

    Args:
        chosen: ``(batch, length)`` booleans.

    Yields:
        What is only known after the pass: a model may have no backbone of its own, or not call it (BART's decoder alone).
    """
    inner, selection = unwrap(model), Selection()
    backbone = inner.base_model
    if backbone is inner:
        yield selection
        return

    def keep(module: Any, arguments: Any, output: Any) -> Any:
        output["last_hidden_state"] = output["last_hidden_state"][chosen][None]
        selection.happened = True
        return output

    handle = backbone.register_forward_hook(keep)
    try:
        yield selection
    finally:
        handle.remove()


def logits_at(
    model: Any, inputs: Mapping[str, Any], labels: torch.Tensor, chosen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(1, chosen, vocabulary)`` and labels ``(1, chosen)`` at the chosen positions.

    Args:
        inputs: of the model. labels, chosen: ``(batch, length)``, aligned with the logits.
    """
    with only_at(model, chosen):
        logits = model(**inputs).logits
    found = labels[chosen][None]
    # whole where there was no backbone to select at, or where the head reads something else of it (ProphetNet)
    return logits if logits.shape[:2] == found.shape else logits[chosen][None], found
