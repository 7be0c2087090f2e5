"""The layers of a model, found by the names of its parameters: what is frozen, and what learns more slowly."""

from __future__ import annotations

import re
from typing import Any

from lmkit import console
from lmkit.errors import RecipeError

# encoder.layer.3.attention..., model.layers.3..., transformer.h.3..., encoder.block.3.layer.0...: the outermost counts
_LAYER = re.compile(r"^(.*?(?:^|\.)(?:layers?|h|blocks?))\.(\d+)\.")
_EMBEDDINGS = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|shared)\.")


def layer_of(name: str) -> tuple[str, int] | None:
    """Stack and number of the layer that a parameter belongs to; None for embeddings and heads.

    >>> layer_of("decoder.block.3.layer.0.SelfAttention.q.weight")
    ('decoder.block', 3)
    """
    found = _LAYER.match(name)
    return (found[1], int(found[2])) if found else None


def stacks(model: Any) -> dict[str, int]:
    """Stack -> number of its layers: one, or an encoder's and a decoder's."""
    depths: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if layer := layer_of(name):
            depths[layer[0]] = max(depths.get(layer[0], 0), layer[1] + 1)
    return depths


def layer_scales(model: Any, decay: float) -> dict[str, float]:
    """Parameter -> share of the learning rate (Clark et al. 2020, Bao et al. 2021).

    A layer has ``decay`` times the rate of the one above it, the top one ``decay``, the embeddings the least, and
    whatever comes after the layers (final norm, pooler, head) the full rate. Each stack counts its own depth;
    embeddings that an encoder and a decoder share lie below the deeper one.

    Raises:
        RecipeError: no layers are found.
    """
    depths = _depths(model, "train.layer_decay")
    scales = {}
    for name, _ in model.named_parameters():
        if layer := layer_of(name):
            scales[name] = decay ** (depths[layer[0]] - layer[1])
        elif _EMBEDDINGS.search(name):
            above = [
                depth
                for stack, depth in depths.items()
                if name.startswith(f"{stack.rpartition('.')[0]}.")
            ]
            scales[name] = decay ** (1 + max(above or depths.values()))
        else:
            scales[name] = 1.0
    return scales


def freeze(model: Any, *, embeddings: bool, layers: int) -> None:
    """Leave embeddings, or the first layers of every stack, as they are.

    Raises:
        RecipeError: there are fewer layers, or nothing would be left to train.
    """
    if layers:
        depths = _depths(model, "train.freeze_layers")
        stack, fewest = min(depths.items(), key=lambda entry: entry[1])
        if layers > fewest:
            raise RecipeError(
                f"{layers} layers, but {stack} has {fewest}",
                place="train.freeze_layers",
                remedy=f"{fewest} or less",
            )
    for name, parameter in model.named_parameters():
        layer = layer_of(name)
        if (layer is not None and layer[1] < layers) or (
            layer is None and embeddings and _EMBEDDINGS.search(name)
        ):
            parameter.requires_grad = False
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError(
            "nothing is left to train", place="train.freeze_layers", remedy="freeze less"
        )
    output = model.get_output_embeddings()
    if embeddings and output is not None and output.weight is model.get_input_embeddings().weight:
        console.warn(
            "train.freeze_embeddings: the output layer has the same weights, so it is frozen with them"
        )


def _depths(model: Any, key: str) -> dict[str, int]:
    depths = stacks(model)
    if not depths:
        raise RecipeError(
            f"{model.config.model_type} has no layers that can be told apart by name",
            place=key,
            remedy="leave it out",
        )
    return depths
