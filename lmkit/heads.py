"""Logits only where they are needed, the head of a language model at chosen positions alone; answers that are not rounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def unwrap(model: Any) -> Any:
    """Return the Hugging Face model inside PEFT's wrapper. There is no other: processes sum their gradients beside the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def num_positions(model: Any) -> int | None:
    """Return how many tokens the model has positions for; None: there is no table of them (T5, XLNet, Mamba).

    The positions of RoBERTa and its kin begin behind that of the padding, so it reads two fewer than its table holds.
    """
    names = ("max_position_embeddings", "max_seq_len")  # MPT has the second
    limit = next(
        (getattr(model.config, name) for name in names if hasattr(model.config, name)), None
    )
    if limit is None or limit < 1:  # XLNet says -1
        return None
    tables = (
        module for name, module in model.named_modules() if name.endswith("position_embeddings")
    )
    padding = next(
        (table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None),
        None,
    )
    return int(limit) if padding is None else int(limit) - padding - 1


def learns_positions(model: Any) -> bool:
    """Tell if each position has a vector of its own that is learned (BERT, GPT-2, BART): those that no text reached are random.

    Rotary, sinusoidal and relative positions go on by themselves.
    """
    import torch

    return any(
        isinstance(module, torch.nn.Embedding)
        and "Sinusoidal" not in type(module).__name__
        and ("position" in (last := name.rpartition(".")[2]) or last == "wpe")
        for name, module in model.named_modules()
    )


def crf_of(model: Any) -> Any:
    """Return the CRF layer of a word tagger (``tagging.crf``), or None."""
    return getattr(unwrap(model), "crf", None)


def head_in_fp32(model: Any) -> None:
    """Have the linear layers behind the backbone compute in fp32 under autocast, too; without it nothing changes.

    bf16 has eight bits: a number read off it comes in steps of 1/64 between 2 and 4, and many that differ become ties. A
    classifier's layers have few outputs, so the second product costs next to nothing. Layers that LoRA adds are left as they
    are in training, where they do not exist yet, and so in a loaded adapter, too. A pooler belongs to the backbone.
    """
    import torch

    inner = unwrap(model)
    backbone = set(
        inner.base_model.modules()
    )  # all of it where a model is no backbone and head: then nothing is changed
    for name, module in inner.named_modules():
        is_linear = type(module) is torch.nn.Linear and "lora_" not in name
        if (
            is_linear
            and module not in backbone
            and _anew_in_fp32 not in module._forward_hooks.values()
        ):
            module.register_forward_hook(_anew_in_fp32)


def _anew_in_fp32(
    module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor
) -> torch.Tensor | None:
    import torch

    if not (arguments and torch.is_autocast_enabled(output.device.type)):
        return None
    with torch.autocast(output.device.type, enabled=False):
        bias = None if module.bias is None else module.bias.float()
        return torch.nn.functional.linear(arguments[0].float(), module.weight.float(), bias)


@dataclass
class Selection:
    """Whether positions were selected in the last forward pass; else its logits are whole."""

    happened: bool = False


@contextmanager
def only_at(model: Any, chosen: torch.Tensor) -> Iterator[Selection]:
    """Have the backbone pass on the hidden states of the chosen positions only, while active.

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
    """Return logits ``(1, chosen, vocabulary)`` and labels ``(1, chosen)`` at the chosen positions.

    Args:
        inputs: of the model. labels, chosen: ``(batch, length)``, aligned with the logits.
    """
    with only_at(model, chosen):
        logits = model(**inputs).logits
    chosen_labels = labels[chosen][None]
    # whole where there was no backbone to select at, or where the head reads something else of it (ProphetNet)
    is_whole = logits.shape[:2] != chosen_labels.shape
    return logits[chosen][None] if is_whole else logits, chosen_labels
