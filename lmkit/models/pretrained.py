"""Weights from a directory or hub id, and the modules that no weights were found for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmkit.errors import ModelError
from lmkit.recipe.schema import Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# of transformers, about what is there and what is in it
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError)


def from_pretrained(
    model_class: str, location: str, options: Model, changes: Mapping[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """Load a model in fp32 from safetensors, with fields of its config changed.

    Returns:
        The model, and its modules that no weights were loaded for.

    Raises:
        ModelError: it is not there, or no model of this class.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

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
    except (*LOADING_ERRORS, SafetensorError) as error:
        raise _not_loaded(model_class, location, error) from None
    mismatched = {name for name, *_ in info.get("mismatched_keys", [])}
    return model, new_modules(model, mismatched.union(info["missing_keys"]))


def _not_loaded(model_class: str, location: str, error: Exception) -> ModelError:
    message = str(error).strip().split("\n")[0]
    problem = f"no {model_class} could be loaded: {message}"
    remedy = "does the directory hold config.json and model.safetensors of this kind of model?"
    if "Unrecognized configuration class" in message:
        problem = f"transformers has no {model_class} of this architecture"
        remedy = "take a model of another one (BERT, ModernBERT, RoBERTa, ...; for translation Marian, T5, BART, ...)"
    elif "safetensors" in str(error):
        remedy = "weights are read as safetensors only; convert a pytorch_model.bin that you trust with transformers"
    return ModelError(problem, place=f"model: {location}", remedy=remedy)


def new_modules(model: Any, missing: set[str]) -> list[str]:
    """Return the topmost modules all of whose parameters are new, and the owners of single new ones.

    Args:
        missing: parameter names that no weights were loaded for.
    """
    whole: list[str] = []
    for name, module in model.named_modules():
        parameters = {f"{name}.{inner}" for inner, _ in module.named_parameters()}
        is_inside = name.startswith(tuple(f"{above}." for above in whole))
        if parameters and parameters <= missing and not is_inside:
            whole.append(name)
    inside = tuple(f"{name}." for name in whole)
    owners = set()
    for name, _ in model.named_parameters():
        if name in missing and "." in name and not name.startswith(inside):
            owners.add(name.rpartition(".")[0])
    return whole + sorted(owners)
