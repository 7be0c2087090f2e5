"""The config of a model: read from a directory or the hub, and the fields of it that a recipe may change."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit.errors import ModelError, RecipeError, suggest
from lmkit.models.source import ModelSource
from lmkit.recipe.schema import Recipe
from lmkit.startup import importing

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from lmkit.tasks.base import Task


def load_config(source: ModelSource, recipe: Recipe) -> PretrainedConfig:
    """Load the config of a model directory or hub id.

    Raises:
        ModelError: none is there, or it cannot be read.
    """
    with importing():
        from transformers import AutoConfig

    revision = recipe.model.revision or "main"
    trust = recipe.model.trust_remote_code
    try:
        return AutoConfig.from_pretrained(
            source.location, revision=revision, trust_remote_code=trust
        )
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(source, error) from None


def _unreadable(source: ModelSource, error: Exception) -> ModelError:
    message = str(error).strip().split("\n")[0]
    remedy = "is it the directory with config.json, or a hub id that can be reached?"
    if "trust_remote_code" in str(error):
        remedy = "if you trust its code, model.trust_remote_code=true"
    return ModelError(
        f"no model could be loaded: {message}",
        place=f"model.base: {source.location}",
        remedy=remedy,
    )


def check_architecture(config: PretrainedConfig, task: Task) -> None:
    """Refuse an encoder or a decoder where the task needs both."""
    if task.problem.architecture == "encoder-decoder" and not config.is_encoder_decoder:
        raise ModelError(
            f"{config.model_type} is no encoder-decoder, and {task.name} needs one",
            place="model",
            remedy=f"take a marian, t5, bart, mbart or m2m_100 model, or the preset {task.problem.smoke_preset}-mini",
        )


def dropout_fields(config: Mapping[str, Any], rate: float) -> dict[str, float]:
    """Return the config's dropout rates at the new rate, except for those of whole layers (``layerdrop``)."""
    rates = {}
    for name, value in config.items():
        is_dropout = "dropout" in name or name.endswith("_pdrop")
        if is_dropout and isinstance(value, float):
            rates[name] = rate
    return rates


def check_fields(changes: Mapping[str, Any], config: PretrainedConfig) -> None:
    """Refuse a field that the architecture does not have: transformers would keep it and never read it."""
    names = {*config.to_dict(), *config.attribute_map, "model_type", "attn_implementation"}
    for name in changes:
        if name not in names and not hasattr(config, name) and not _reads(config, name):
            raise RecipeError(
                f"{config.model_type} has no field {name!r}",
                place=f"model.config.{name}",
                remedy=suggest(name, names),
            )


def _reads(config: PretrainedConfig, name: str) -> bool:
    """Tell if the architecture's code asks for a field that its config class does not declare (DeBERTa's position_buckets)."""
    name_of_code = type(config).__module__.replace(".configuration_", ".modeling_")
    module = importlib.util.find_spec(name_of_code)
    if module is None or not module.origin:
        return False
    code = Path(module.origin).read_text(encoding="utf-8")
    pattern = rf"\bconfig\.{re.escape(name)}\b|config, [\"']{re.escape(name)}[\"']"
    return re.search(pattern, code) is not None


def check_decided(asked: Mapping[str, Any], decided: Mapping[str, Any]) -> None:
    """Refuse values of ``model.config`` that have no effect, because tokenizer and task decide otherwise."""
    against = []
    for name, value in asked.items():
        if name in decided and value != decided[name]:
            against.append(name)
    if not against:
        return
    problems = [
        f"{asked[name]!r}, but tokenizer and task make it {decided[name]!r}" for name in against
    ]
    raise RecipeError(
        "; ".join(problems),
        place=", ".join(f"model.config.{name}" for name in against),
        remedy="leave out what is named",
    )
