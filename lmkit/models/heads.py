"""Logits only where they are needed: the head of a language model runs on chosen positions alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def unwrap(model: Any) -> Any:
    """The Hugging Face model inside PEFT's wrapper. There is no other: processes sum their gradients beside the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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


def logits_at(
    model: Any, inputs: Mapping[str, Any], labels: torch.Tensor, chosen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(1, chosen, vocabulary)`` and labels ``(1, chosen)`` at the chosen positions.

    Args:
        inputs: of the model. labels, chosen: ``(batch, length)``, aligned with the logits.
    """
    with only_at(model, chosen) as selected:
        logits = model(**inputs).logits
    return logits if selected else logits[chosen][None], labels[chosen][None]
