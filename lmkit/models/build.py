"""Models: built from a preset or config, loaded from a source, saved and checked."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.errors import ModelError, RecipeError, suggest
from lmkit.heads import crf_of, learns_positions, num_positions, unwrap
from lmkit.models.adapters import add_lora, load_adapter
from lmkit.models.causal import check_causal, decoder_fields
from lmkit.models.crf import FILE as CRF_FILE
from lmkit.models.crf import add_crf, load_crf, save_crf
from lmkit.models.layers import freeze
from lmkit.models.load import from_pretrained, load_config, new_modules
from lmkit.models.presets import preset_config
from lmkit.models.quantized import quantization
from lmkit.models.source import DESCRIPTION, ModelSource
from lmkit.models.tokenizer import num_tokens, pieces_of, save_tokenizer
from lmkit.recipe.schema import Recipe
from lmkit.tasks.languages import target_of
from lmkit.tasks.registry import problems

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

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
    """(model_type, is_encoder_decoder) of what the recipe names, before any tokenizer or weight is loaded."""
    if source is None:
        config = _described(recipe)
        if "model_type" not in config:
            raise RecipeError(
                "no model: neither model.base nor model.preset is given",
                place="model",
                remedy="for example model.preset=bert-mini, or model.base=DIR",
            )
        return config["model_type"], bool(_config_class(config["model_type"])().is_encoder_decoder)
    config = load_config(source, recipe)
    return config.model_type, bool(config.is_encoder_decoder)


def build_model(recipe: Recipe, task: Task, source: ModelSource | None) -> Built:
    """The model a recipe asks for, with a head for the task; random parts follow ``recipe.seed``.

    Args:
        source: where ``model.base`` was found; None for a preset or a config.

    Raises:
        ModelError, RecipeError: it cannot be built or loaded, or cannot do the task.
    """
    import torch

    torch.manual_seed(recipe.seed)
    new: list[str] = []
    if source is None:
        values = _described(recipe)
        values |= _decided(
            recipe, _token_ids(task.tokenizer, values["model_type"]) | task.model_config()
        )
        model, origin = _from_config(values, recipe, task), f"random {values['model_type']}"
    elif source.is_adapter:
        raise ModelError(
            "an adapter cannot be trained on; merge it first, or name its base",
            place=f"model.base: {source.location}",
            remedy=f"lmkit merge {source.run or source.location} -o DIR, then model.base=DIR",
        )
    else:
        model, new = _from_source(recipe, task, source)
        origin = source.location
    _check_length(model, recipe, task)
    _read_further(model, task)
    if task.problem.architecture == "decoder":
        check_causal(model)
    task.configure(model)
    added = grow_embeddings(model, task.tokenizer, recipe.tokenizer.add_tokens)
    if recipe.hardware.gradient_checkpointing:
        _checkpoint_gradients(model)
    freeze(model, embeddings=recipe.train.freeze_embeddings, layers=recipe.train.freeze_layers)
    if recipe.lora is not None:
        if source is None:
            raise RecipeError(
                "LoRA adapts trained weights, and this model starts from random ones",
                place="lora",
                remedy="give model.base, or lora: null",
            )
        model = add_lora(
            model, recipe, source, auto_class=task.problem.auto_class, new=new, added=added
        )
    if recipe.tagging.crf:
        knows = (
            source is not None
            and source.description.get("facts", {}).get("labels") == task.facts["labels"]
        )
        weights = (
            load_crf(source.location, recipe.model.revision)
            if source is not None and knows
            else None
        )
        add_crf(model, len(task.facts["labels"]), weights)
        new = new if weights else [*new, "crf"]
    return Built(model, new, origin)


def _described(recipe: Recipe) -> dict[str, Any]:
    """The config of a preset with ``model.config`` on top, or ``model.config`` alone."""
    start = (
        preset_config(recipe.model.preset, max_length=recipe.data.max_length)
        if recipe.model.preset
        else {}
    )
    return start | recipe.model.config


def _config_class(model_type: str) -> Any:
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        raise RecipeError(
            f"transformers knows no model_type {model_type!r}",
            place="model.config.model_type",
            remedy=suggest(model_type, CONFIG_MAPPING.keys(), most=5),
        )
    return CONFIG_MAPPING[model_type]


def _check_fields(changes: Mapping[str, Any], config: PretrainedConfig) -> None:
    """Refuse a field that the architecture does not have: transformers would keep it and never read it."""
    known = {*config.to_dict(), *config.attribute_map, "model_type", "attn_implementation"}
    for name in changes:
        if name not in known and not hasattr(config, name) and not _reads(config, name):
            raise RecipeError(
                f"{config.model_type} has no field {name!r}",
                place=f"model.config.{name}",
                remedy=suggest(name, known),
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


def _decided(recipe: Recipe, decided: dict[str, Any]) -> dict[str, Any]:
    """The fields of the config that follow from tokenizer and task; more embeddings than tokens may be asked for.

    Raises:
        RecipeError: ``model.config`` says otherwise, which would have no effect.
    """
    asked = recipe.model.config
    rows = asked.get("vocab_size")
    if "vocab_size" in decided and isinstance(rows, int) and rows > decided["vocab_size"]:
        shared = (
            {"decoder_vocab_size"} & decided.keys()
            if decided.get("share_encoder_decoder_embeddings", True)
            else set()
        )
        decided = decided | dict.fromkeys({"vocab_size", *shared}, rows)
    against = {
        name: value for name, value in asked.items() if name in decided and value != decided[name]
    }
    if against:
        found = "; ".join(
            f"{value!r}, but tokenizer and task make it {decided[name]!r}"
            for name, value in against.items()
        )
        raise RecipeError(
            found,
            place=", ".join(f"model.config.{name}" for name in against),
            remedy="leave out what is named",
        )
    return decided


def _token_ids(tokenizer: PreTrainedTokenizerBase, model_type: str) -> dict[str, Any]:
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
        for name in ("pad", "bos", "eos", "cls", "sep")
    }
    target = target_of(tokenizer)
    if model_type in ("marian", "t5"):
        ids |= {"decoder_start_token_id": ids["pad_token_id"], "forced_eos_token_id": None}
    if model_type == "marian":
        ids |= {"decoder_vocab_size": num_tokens(target)}
        if target is not tokenizer:
            ids |= {"share_encoder_decoder_embeddings": False}
    fields = getattr(_config_class(model_type), "__dataclass_fields__", {})
    for name, value in ids.items():
        if (
            value is None
            and name in fields
            and not re.search("None|Optional", str(fields[name].type))
        ):
            ids[name] = ids[
                "pad_token_id"
            ]  # a number has to stand there (ModernBERT's decoder), and none of another vocabulary
    return {"vocab_size": num_tokens(tokenizer)} | ids


def _from_config(values: dict[str, Any], recipe: Recipe, task: Task) -> PreTrainedModel:
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    values = dict(values)
    cls = _config_class(values.pop("model_type"))
    _check_fields(recipe.model.config, cls())
    if task.problem.architecture == "decoder":
        values |= decoder_fields(cls())
    try:
        config = cls(**_with_dropout(values, cls().to_dict() | values, recipe.train.dropout))
        _check_kind(config, task)
        model = getattr(transformers, task.problem.auto_class).from_config(config, dtype="float32")
    except (
        ValueError,
        TypeError,
        KeyError,
        AssertionError,
        RuntimeError,
        AttributeError,
        ArithmeticError,
        StrictDataclassError,
    ) as error:
        if recipe.model.config or "Unrecognized configuration class" in str(error):
            message = " ".join(str(error).split())[:300]
            raise RecipeError(
                f"no {task.problem.auto_class} can be made of this: {message}",
                place="model.config" if recipe.model.config else "model",
                remedy="the fields must fit together; lmkit's own presets: model.preset=bert-mini, ...",
            ) from None
        raise
    return model


def _with_dropout(
    values: dict[str, Any], present: Mapping[str, Any], rate: float | None
) -> dict[str, Any]:
    """Set every dropout rate that the config has, except for whole layers (``layerdrop``)."""
    if rate is None:
        return values
    names = [
        name
        for name, value in present.items()
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float)
    ]
    return values | dict.fromkeys(names, rate)


def _from_source(
    recipe: Recipe, task: Task, source: ModelSource
) -> tuple[PreTrainedModel, list[str]]:
    base = load_config(source, recipe)
    _check_fields(recipe.model.config, base)
    _check_kind(base, task)
    rows = getattr(base, "vocab_size", None)
    if (asked := recipe.model.config.get("vocab_size", rows)) != rows:
        raise RecipeError(
            f"{asked!r}, but this base has {rows}",
            place="model.config.vocab_size",
            remedy="leave it out; with tokenizer.add_tokens the embeddings of a base grow",
        )
    is_decoder = task.problem.architecture == "decoder"
    decided = _decided(recipe, task.model_config() | (decoder_fields(base) if is_decoder else {}))
    changes = _with_dropout(recipe.model.config | decided, base.to_dict(), recipe.train.dropout)
    if recipe.lora is not None and recipe.lora.quantize is not None:
        changes |= quantization(
            recipe.lora.quantize, task.problem.auto_class, base, recipe.hardware.precision
        )
    model, info = from_pretrained(task.problem.auto_class, source.location, recipe.model, changes)
    missing = set(info["missing_keys"]) | {entry[0] for entry in info.get("mismatched_keys", [])}
    return model, new_modules(model, missing)


def grow_embeddings(
    model: Any, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]
) -> list[int]:
    """Rows for tokens that a base does not know: each the mean of the rows of the pieces its text was read as.

    Args:
        tokens: those of ``tokenizer.add_tokens``; whatever else the embeddings have no row for is new as well.

    Returns:
        The ids of the new tokens.
    """
    import torch

    rows = model.get_input_embeddings().num_embeddings
    new = sorted(
        {*tokenizer.convert_tokens_to_ids(list(tokens)), *range(rows, num_tokens(tokenizer))}
    )
    if new and new[-1] >= rows:
        model.resize_token_embeddings(new[-1] + 1, mean_resizing=False)
    if (
        new
        and (output := model.get_output_embeddings()) is not None
        and output.weight.shape[0] <= new[-1]
    ):
        raise RecipeError(
            f"this {model.config.model_type} has a vocabulary for each language, and only one would grow",
            place="tokenizer.add_tokens",
            remedy="leave it out",
        )
    tables = {
        id(table.weight): table.weight
        for table in (model.get_input_embeddings(), model.get_output_embeddings())
        if table
    }
    with torch.no_grad():
        for token, pieces in pieces_of(tokenizer, new).items() if new and tokenizer.is_fast else ():
            for weight in tables.values():
                weight[token] = weight[pieces].mean(0) if pieces else weight[: new[0]].mean(0)
    return new


def _checkpoint_gradients(model: Any) -> None:
    # the name of transformers 5.2x, else the older one
    enable = (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )
    try:
        enable({"use_reentrant": False})
    except ValueError:
        raise RecipeError(
            f"{model.config.model_type} computes no activations again: transformers has no gradient checkpointing for it",
            place="hardware.gradient_checkpointing",
            remedy="leave it out; a smaller hardware.micro_batch_tokens saves memory too",
        ) from None


def _check_kind(config: PretrainedConfig, task: Task) -> None:
    if task.problem.architecture == "encoder-decoder" and not config.is_encoder_decoder:
        raise ModelError(
            f"{config.model_type} is no encoder-decoder, and {task.name} needs one",
            place="model",
            remedy=f"take a marian, t5, bart, mbart or m2m_100 model, or the preset {task.problem.smoke_preset}-mini",
        )


def _check_length(model: PreTrainedModel, recipe: Recipe, task: Task) -> None:
    """Refuse more tokens than there are positions for."""
    limit = num_positions(model)
    if limit is not None and recipe.data.max_length > limit:
        is_cut = task.problem.architecture == "encoder-decoder"
        windows = "" if is_cut else "; longer texts are read in windows"
        raise RecipeError(
            f"{recipe.data.max_length} tokens, but this model reads {limit}",
            place="data.max_length",
            remedy=f"data.max_length={limit} or less{windows}",
        )


def _read_further(model: PreTrainedModel, task: Task) -> None:
    """Have the tokenizers name the recipe's length, at which plain transformers cuts, and say where it is new to the model.

    What a tokenizer names is the length that its first model was trained on: positions behind it that are learned one by one
    were not.
    """
    before = task.tokenizer.model_max_length
    if task.max_length > before and learns_positions(model):
        console.warn(
            f"data.max_length={task.max_length}: by its tokenizer this model was trained on {before} tokens, and it learns each "
            "position by itself: those behind may be random until it has learned them here"
        )
    for tokenizer in (task.tokenizer, target_of(task.tokenizer)):
        tokenizer.model_max_length = max(tokenizer.model_max_length, task.max_length)


def count_parameters(model: Any) -> tuple[int, int]:
    """(trained, total)."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def save_model(model: Any, task: Task, folder: Path) -> None:
    """Weights as safetensors, config, tokenizer and description into an existing folder."""
    inner = unwrap(model)
    weights = None
    if crf_of(model) is not None:
        save_crf(model, folder)
        if model is inner:  # plain transformers has no place for them
            weights = {
                name: value
                for name, value in model.state_dict().items()
                if not name.startswith("crf.")
            }
    if model is inner:
        model.save_pretrained(folder, state_dict=weights)
    else:
        model.save_pretrained(
            folder, save_embedding_layers=False
        )  # rows of new tokens are in the adapter
        config = copy(inner.config)  # an adapter alone does not know its labels
        config.__dict__.pop("quantization_config", None)  # nor is its base stored in few bits
        config.save_pretrained(folder)
        if task.problem.architecture == "encoder-decoder":
            inner.generation_config.save_pretrained(folder)  # nor what its output starts with
        (folder / "README.md").unlink(
            missing_ok=True
        )  # PEFT's template; the run has a card of its own
    save_tokenizer(task.tokenizer, folder)
    (folder / DESCRIPTION).write_text(
        json.dumps(describe(task), ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )


def describe(task: Task) -> dict[str, Any]:
    """What is needed to read text with this model: the task, what it learned of the data, the options of reading."""
    kept = {"seed", "data", "generation"}
    kept |= {problem.section for problem in problems() if problem.section is not None}
    recipe = task.recipe.model_dump(include=kept) | {"task": task.name}
    recipe["data"] = {
        key: recipe["data"][key] for key in ("max_length", "overlap", "long_text", "document")
    }
    lora = task.recipe.lora
    quantized = (
        {"quantize": lora.quantize} if lora is not None and lora.quantize is not None else {}
    )
    return {"task": task.name, "facts": task.facts, "recipe": recipe, **quantized}


def load_trained(source: ModelSource, task: Task) -> Any:
    """The model as it was saved, for evaluation and prediction: every weight loaded, none made up.

    Raises:
        ModelError: a weight the task needs is missing (a base model that was never fine-tuned), or the adapter's base is gone.
    """
    location, recipe = source.location, task.recipe
    if source.is_adapter:
        _check_kind(load_config(source, recipe), task)
        model = load_adapter(source, task.problem.auto_class, recipe)
    else:
        model = _load_whole(source, task)
    _check_length(unwrap(model), recipe, task)
    if learns_positions(unwrap(model)) and recipe.data.max_length > (
        known := int(task.tokenizer.model_max_length)
    ):
        raise RecipeError(
            f"{recipe.data.max_length} tokens, but by its tokenizer this model was trained on {known}, and it learns each position by itself",
            place="data.max_length",
            remedy=f"data.max_length={known} or less, or train it further at this length",
        )
    if task.problem.architecture == "decoder":
        check_causal(model)
    task.configure(unwrap(model))
    if recipe.tagging.crf:
        weights = load_crf(location, recipe.model.revision)
        if weights is None:
            raise ModelError(
                f"this model has no CRF: there is no {CRF_FILE}",
                place=location,
                remedy="leave tagging.crf out, or train with it",
            )
        add_crf(model, len(task.facts["labels"]), weights)
    return model.eval()


def _load_whole(source: ModelSource, task: Task) -> Any:
    location, recipe = source.location, task.recipe
    _check_kind(load_config(source, recipe), task)
    model, info = from_pretrained(task.problem.auto_class, location, recipe.model, {})
    if missing := new_modules(
        model, set(info["missing_keys"]) | {entry[0] for entry in info.get("mismatched_keys", [])}
    ):
        raise ModelError(
            f"this model was not trained for {task.name}: no weights for {', '.join(missing)}",
            place=location,
            remedy=f"fine-tune it first: a recipe with model.base={location}",
        )
    return model
