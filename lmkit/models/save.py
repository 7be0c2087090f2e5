"""Models saved: weights, config, tokenizer, and what is needed to read text with them."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit.heads import crf_of, unwrap
from lmkit.models.crf import save_crf
from lmkit.models.source import DESCRIPTION
from lmkit.models.tokenizer import save_tokenizer
from lmkit.run import write_json
from lmkit.tasks.registry import problems

if TYPE_CHECKING:
    from lmkit.tasks.base import Task

# the keys of ``data`` that decide how text is read
DATA_KEYS = ("max_length", "overlap", "long_text", "document")


def save_model(model: Any, task: Task, folder: Path) -> None:
    """Save weights as safetensors, config, tokenizer and description into an existing folder."""
    is_adapted = model is not unwrap(model)
    if crf_of(model) is not None:
        save_crf(model, folder)
    if is_adapted:
        _save_adapter(model, task, folder)
    elif crf_of(model) is not None:
        model.save_pretrained(folder, state_dict=_weights_without_crf(model))
    else:
        model.save_pretrained(folder)
    save_tokenizer(task.tokenizer, folder)
    write_json(folder / DESCRIPTION, describe(task))


def _weights_without_crf(model: Any) -> dict[str, Any]:
    """Return the weights that plain transformers has a place for."""
    weights = model.state_dict().items()
    return {name: value for name, value in weights if not name.startswith("crf.")}


def _save_adapter(model: Any, task: Task, folder: Path) -> None:
    """Save an adapter, and beside it what it does not say of its base: the labels, what an output starts with."""
    inner = unwrap(model)
    # the adapter holds the rows of new tokens
    model.save_pretrained(folder, save_embedding_layers=False)
    config = copy(inner.config)
    config.__dict__.pop("quantization_config", None)  # the base is not stored in few bits
    config.save_pretrained(folder)
    if task.problem.architecture == "encoder-decoder":
        inner.generation_config.save_pretrained(folder)
    # PEFT's template; the run has a card of its own
    (folder / "README.md").unlink(missing_ok=True)


def describe(task: Task) -> dict[str, Any]:
    """Return what is needed to read text with this model: the task, its facts, the options of reading."""
    sections = {problem.section for problem in problems() if problem.section is not None}
    recipe = task.recipe.model_dump(include=sections | {"seed", "data", "generation"})
    recipe["task"] = task.name
    recipe["data"] = {key: recipe["data"][key] for key in DATA_KEYS}
    description = {"task": task.name, "facts": task.facts, "recipe": recipe}
    lora = task.recipe.lora
    if lora is not None and lora.quantize is not None:
        description["quantize"] = lora.quantize
    return description
