"""Models built for training: loaded from a source or random, fitted to the task, and adapted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.errors import ModelError, RecipeError
from lmkit.heads import learns_positions, num_positions
from lmkit.models.adapters import add_lora
from lmkit.models.causal import check_causal, decoder_fields
from lmkit.models.config import (
    check_architecture,
    check_decided,
    check_fields,
    dropout_fields,
    load_config,
)
from lmkit.models.crf import add_crf, load_crf
from lmkit.models.embeddings import grow_embeddings
from lmkit.models.layers import freeze
from lmkit.models.pretrained import from_pretrained
from lmkit.models.quantized import quantization
from lmkit.models.scratch import random_architecture, random_model
from lmkit.models.source import ModelSource
from lmkit.recipe.schema import Recipe
from lmkit.tasks.languages import target_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from lmkit.tasks.base import Task


@dataclass(frozen=True)
class Built:
    """A model ready to train.

    Args:
        model: the Hugging Face model, or the PEFT model around it; fp32.
        new: modules that no weights were loaded for.
        origin: one line for the manifest and the console.
    """

    model: Any
    new: list[str]
    origin: str


def architecture(recipe: Recipe, source: ModelSource | None) -> tuple[str, bool]:
    """(model_type, is_encoder_decoder) of the recipe's model, before any tokenizer or weight is loaded."""
    if source is None:
        return random_architecture(recipe)
    config = load_config(source, recipe)
    return config.model_type, bool(config.is_encoder_decoder)


def build_model(recipe: Recipe, task: Task, source: ModelSource | None) -> Built:
    """Build the model that a recipe asks for, with a head for the task; random parts follow ``recipe.seed``.

    Args:
        source: where ``model.base`` was found; None for a preset or a config.

    Raises:
        ModelError, RecipeError: it cannot be built or loaded, or cannot do the task.
    """
    import torch

    torch.manual_seed(recipe.seed)
    new: list[str] = []
    if source is None:
        model: Any = random_model(recipe, task)
        origin = f"random {model.config.model_type}"
    else:
        model, new = _load_base(recipe, task, source)
        origin = source.location
    check_length(model, task)
    _read_further(model, task)
    if task.problem.architecture == "decoder":
        check_causal(model)
    task.configure(model)
    added = grow_embeddings(model, task.tokenizer, recipe.tokenizer.add_tokens)
    if recipe.hardware.gradient_checkpointing:
        checkpoint_gradients(model)
    if recipe.train.freeze_embeddings or recipe.train.freeze_layers:
        freeze(model, embeddings=recipe.train.freeze_embeddings, layers=recipe.train.freeze_layers)
    if recipe.lora is not None:
        auto_class = task.problem.auto_class
        model = add_lora(model, recipe, source, auto_class=auto_class, new=new, added=added)
    if recipe.tagging.crf and not _add_crf(model, recipe, task, source):
        new = [*new, "crf"]
    return Built(model, new, origin)


def _load_base(
    recipe: Recipe, task: Task, source: ModelSource
) -> tuple[PreTrainedModel, list[str]]:
    """Load ``model.base``, its config changed by the task and the recipe; returns its new modules, too."""
    if source.is_adapter:
        raise ModelError(
            "an adapter cannot be trained on; merge it first, or name its base",
            place=f"model.base: {source.location}",
            remedy=f"lmkit merge {source.run or source.location} -o DIR, then model.base=DIR",
        )
    config = load_config(source, recipe)
    check_architecture(config, task)
    changes = task.model_config()
    if task.problem.architecture == "decoder":
        changes |= decoder_fields(config)
    if recipe.model.config:
        _check_changes(recipe, config, changes)
        changes |= recipe.model.config
    if recipe.train.dropout is not None:
        changes |= dropout_fields(config.to_dict(), recipe.train.dropout)
    auto_class = task.problem.auto_class
    if recipe.lora is not None and recipe.lora.quantize is not None:
        bits, precision = recipe.lora.quantize, recipe.hardware.precision
        changes |= quantization(bits, auto_class, config, precision)
    return from_pretrained(auto_class, source.location, recipe.model, changes)


def _check_changes(recipe: Recipe, config: PretrainedConfig, decided: dict[str, Any]) -> None:
    """Refuse fields of ``model.config`` that a trained base cannot have, or that the task decides."""
    asked = recipe.model.config
    check_fields(asked, config)
    rows = getattr(config, "vocab_size", None)
    if asked.get("vocab_size", rows) != rows:
        raise RecipeError(
            f"{asked['vocab_size']!r}, but this base has {rows}",
            place="model.config.vocab_size",
            remedy="leave it out; with tokenizer.add_tokens the embeddings of a base grow",
        )
    check_decided(asked, decided)


def check_length(model: PreTrainedModel, task: Task) -> None:
    """Refuse more tokens than there are positions for."""
    limit = num_positions(model)
    if limit is not None and task.max_length > limit:
        raise _reads_less(task, limit)


def _reads_less(task: Task, limit: int) -> RecipeError:
    remedy = f"data.max_length={limit} or less"
    if task.problem.architecture != "encoder-decoder":
        remedy += "; longer texts are read in windows"
    return RecipeError(
        f"{task.max_length} tokens, but this model reads {limit}",
        place="data.max_length",
        remedy=remedy,
    )


def _read_further(model: PreTrainedModel, task: Task) -> None:
    """Write the recipe's length into the tokenizers, where plain transformers cuts; warn where it is new to the model.

    A tokenizer names the length that its first model was trained on. Positions behind it that are learned one by one
    were not trained.
    """
    length = task.tokenizer.model_max_length
    if task.max_length > length and learns_positions(model):
        console.warn(
            f"data.max_length={task.max_length}: by its tokenizer this model was trained on {length} tokens, and it learns each "
            "position by itself: those behind may be random until it has learned them here"
        )
    for tokenizer in (task.tokenizer, target_of(task.tokenizer)):
        tokenizer.model_max_length = max(tokenizer.model_max_length, task.max_length)


def checkpoint_gradients(model: Any) -> None:
    """Compute activations again in the backward pass, in place of keeping them."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:  # the name before transformers 5.2
        enable = model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError:
        raise RecipeError(
            f"{model.config.model_type} computes no activations again: transformers has no gradient checkpointing for it",
            place="hardware.gradient_checkpointing",
            remedy="leave it out; a smaller hardware.micro_batch_tokens saves memory too",
        ) from None


def _add_crf(model: Any, recipe: Recipe, task: Task, source: ModelSource | None) -> bool:
    """Add a CRF; return whether its weights are those of the base, which must have the same labels."""
    labels, weights = task.facts["labels"], None
    if source is not None and source.description.get("facts", {}).get("labels") == labels:
        weights = load_crf(source.location, recipe.model.revision)
    add_crf(model, len(labels), weights)
    return weights is not None


def count_parameters(model: Any) -> tuple[int, int]:
    """Count the parameters: (trained, total)."""
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return trained, sum(p.numel() for p in parameters)
