"""Models with random weights, from a preset or from fields of a config."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lmkit.errors import RecipeError, suggest
from lmkit.models.causal import decoder_fields
from lmkit.models.config import check_architecture, check_decided, check_fields, dropout_fields
from lmkit.models.presets import preset_config
from lmkit.models.tokenizer import num_tokens
from lmkit.recipe.schema import Recipe
from lmkit.tasks.languages import target_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmkit.tasks.base import Task

# of transformers, about fields that do not fit together
CONFIG_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AssertionError,
    RuntimeError,
    AttributeError,
    ArithmeticError,
)


def random_architecture(recipe: Recipe) -> tuple[str, bool]:
    """(model_type, is_encoder_decoder) of the preset or config that the recipe names."""
    fields = _fields_of(recipe)
    if "model_type" not in fields:
        raise RecipeError(
            "no model: neither model.base nor model.preset is given",
            place="model",
            remedy="for example model.preset=bert-mini, or model.base=DIR",
        )
    config = _config_class(fields["model_type"])()
    return config.model_type, bool(config.is_encoder_decoder)


def random_model(recipe: Recipe, task: Task) -> PreTrainedModel:
    """Make a model of the recipe's preset or config, as wide as the tokenizer's vocabulary.

    Raises:
        RecipeError: the fields do not fit together, or not to tokenizer and task.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    auto_class = task.problem.auto_class
    fields = _fields_of(recipe)
    decided = _token_fields(task.tokenizer, fields["model_type"]) | task.model_config()
    decided = _with_spare_rows(decided, recipe.model.config.get("vocab_size"))
    check_decided(recipe.model.config, decided)
    fields |= decided
    config_class = _config_class(fields.pop("model_type"))
    check_fields(recipe.model.config, config_class())
    if task.problem.architecture == "decoder":
        fields |= decoder_fields(config_class())
    if recipe.train.dropout is not None:
        fields |= dropout_fields(config_class().to_dict() | fields, recipe.train.dropout)
    try:
        config = config_class(**fields)
        check_architecture(config, task)
        model: PreTrainedModel = getattr(transformers, auto_class).from_config(
            config, dtype="float32"
        )
    except (*CONFIG_ERRORS, StrictDataclassError) as error:
        if recipe.model.config or "Unrecognized configuration class" in str(error):
            raise _not_made(auto_class, recipe, error) from None
        raise
    return model


def _not_made(auto_class: str, recipe: Recipe, error: Exception) -> RecipeError:
    message = " ".join(str(error).split())[:300]
    return RecipeError(
        f"no {auto_class} can be made of this: {message}",
        place="model.config" if recipe.model.config else "model",
        remedy="the fields must fit together; lmkit's own presets: model.preset=bert-mini, ...",
    )


def _fields_of(recipe: Recipe) -> dict[str, Any]:
    """Return the config of a preset with ``model.config`` on top, or ``model.config`` alone."""
    model, fields = recipe.model, {}
    if model.preset:
        fields = preset_config(model.preset, max_length=recipe.data.max_length)
    return fields | model.config


def _config_class(model_type: str) -> Any:
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        raise RecipeError(
            f"transformers knows no model_type {model_type!r}",
            place="model.config.model_type",
            remedy=suggest(model_type, CONFIG_MAPPING.keys(), most=5),
        )
    return CONFIG_MAPPING[model_type]


def _token_fields(tokenizer: PreTrainedTokenizerBase, model_type: str) -> dict[str, Any]:
    """Return the fields that the tokenizer decides: the size of the vocabulary, the ids of special tokens."""
    ids = {}
    for name in ("pad", "bos", "eos", "cls", "sep"):
        ids[f"{name}_token_id"] = getattr(tokenizer, f"{name}_token_id")
    target = target_of(tokenizer)
    if model_type in ("marian", "t5"):
        ids |= {"decoder_start_token_id": ids["pad_token_id"], "forced_eos_token_id": None}
    if model_type == "marian":
        ids |= {"decoder_vocab_size": num_tokens(target)}
        if target is not tokenizer:
            ids |= {"share_encoder_decoder_embeddings": False}
    declared = getattr(_config_class(model_type), "__dataclass_fields__", {})
    for name, value in ids.items():
        may_be_none = name not in declared or re.search("None|Optional", str(declared[name].type))
        if value is None and not may_be_none:
            # ModernBERT's decoder needs a number, and none of another vocabulary
            ids[name] = ids["pad_token_id"]
    return {"vocab_size": num_tokens(tokenizer)} | ids


def _with_spare_rows(decided: dict[str, Any], rows: Any) -> dict[str, Any]:
    """Raise the size of the vocabulary to ``rows``: more embeddings than tokens may be asked for."""
    if "vocab_size" not in decided or not isinstance(rows, int) or rows <= decided["vocab_size"]:
        return decided
    decided = decided | {"vocab_size": rows}
    is_shared = decided.get("share_encoder_decoder_embeddings", True)
    if is_shared and "decoder_vocab_size" in decided:
        decided["decoder_vocab_size"] = rows
    return decided
