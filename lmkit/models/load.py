"""Weights and configs from a directory or hub id, and which modules no weights were found for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmkit.errors import ModelError
from lmkit.models.source import ModelSource
from lmkit.recipe.schema import Model, Recipe
from lmkit.startup import importing

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def load_config(source: ModelSource, recipe: Recipe) -> PretrainedConfig:
    """The config of a model directory or hub id."""
    with importing():
        from transformers import AutoConfig

    place = f"model.base: {source.location}"
    try:
        return AutoConfig.from_pretrained(
            source.location,
            revision=recipe.model.revision or "main",
            trust_remote_code=recipe.model.trust_remote_code,
        )
    except (OSError, ValueError, KeyError) as error:
        message = str(error).strip().split("\n")[0]
        remedy = (
            "if you trust its code, model.trust_remote_code=true"
            if "trust_remote_code" in str(error)
            else "is it the directory with config.json, or a hub id that can be reached?"
        )
        raise ModelError(
            f"no model could be loaded: {message}", place=place, remedy=remedy
        ) from None


def from_pretrained(
    model_class: str, location: str, options: Model, changes: Mapping[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load in fp32 from safetensors, with fields of the config changed; returns the loading info too."""
    import torch
    import transformers
    from safetensors import SafetensorError

    changes = {key: value for key, value in changes.items() if key != "id2label"} | (
        {"id2label": dict(changes["id2label"])} if "id2label" in changes else {}
    )
    try:
        model, info = getattr(transformers, model_class).from_pretrained(
            location,
            revision=options.revision or "main",
            trust_remote_code=options.trust_remote_code,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **changes,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        AttributeError,
        SafetensorError,
    ) as error:
        message = str(error).strip().split("\n")[0]
        if "Unrecognized configuration class" in message:
            raise ModelError(
                f"transformers has no {model_class} of this architecture",
                place=f"model: {location}",
                remedy="take a model of another one (BERT, ModernBERT, RoBERTa, ...; for translation Marian, T5, BART, ...)",
            ) from None
        hint = (
            "weights are read as safetensors only; convert a pytorch_model.bin that you trust with transformers"
            if "safetensors" in str(error)
            else "does the directory hold config.json and model.safetensors of this kind of model?"
        )
        raise ModelError(
            f"no {model_class} could be loaded: {message}", place=f"model: {location}", remedy=hint
        ) from None
    return model, info


def new_modules(model: Any, missing: set[str]) -> list[str]:
    """The topmost modules all of whose parameters are new, and the owners of single new ones.

    Args:
        missing: parameter names that no weights were loaded for.
    """
    if not missing:
        return []
    owned = {
        name: {f"{name}.{inner}" for inner, _ in module.named_parameters()}
        for name, module in model.named_modules()
        if name
    }
    whole = [name for name, parameters in owned.items() if parameters and parameters <= missing]
    found = [name for name in whole if not any(name.startswith(f"{other}.") for other in whole)]
    covered = set().union(*(owned[name] for name in found)) if found else set()
    names = dict(model.named_parameters())
    return found + sorted(
        {name.rpartition(".")[0] for name in missing - covered if name in names and "." in name}
    )
