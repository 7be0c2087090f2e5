"""Models: built from a preset or config, loaded from a source, adapted, saved and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit.errors import ModelError, RecipeError, suggest
from lmkit.models.crf import FILE as CRF_FILE
from lmkit.models.crf import add_crf, load_crf, save_crf
from lmkit.models.heads import crf_of, unwrap
from lmkit.models.presets import preset_config
from lmkit.models.source import DESCRIPTION, ModelSource
from lmkit.models.tokenizer import num_tokens, save_tokenizer, target_of
from lmkit.recipe.schema import Lora, Recipe

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
        values |= _token_ids(task.tokenizer, values["model_type"]) | task.model_config()
        model, origin = _from_config(values, recipe, task), f"random {values['model_type']}"
    elif source.is_adapter:
        raise ModelError(
            "an adapter cannot be trained on; merge it first, or name its base",
            place=f"model.base: {source.location}",
            remedy="set model.base to the model the adapter was made for",
        )
    else:
        model, new = _from_source(recipe, task, source)
        origin = source.location
    _check_length(model.config, recipe, task)
    task.configure(model)
    if num_tokens(task.tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(num_tokens(task.tokenizer))
    if recipe.lora is not None:
        if source is None:
            raise RecipeError(
                "LoRA adapts trained weights, and this model starts from random ones",
                place="lora",
                remedy="give model.base, or lora: null",
            )
        model = add_lora(model, recipe.lora, new, task)
    if recipe.tagging.crf:
        knows = source is not None and source.description.get("facts", {}).get("labels") == task.facts["labels"]
        weights = load_crf(source.location, recipe.model.revision) if source is not None and knows else None
        add_crf(model, len(task.facts["labels"]), weights)
        new = new if weights else [*new, "crf"]
    return Built(model, new, origin)


def _described(recipe: Recipe) -> dict[str, Any]:
    """The config of a preset with ``model.config`` on top, or ``model.config`` alone."""
    start = preset_config(recipe.model.preset, max_length=recipe.data.max_length) if recipe.model.preset else {}
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
        if name not in known and not hasattr(config, name):
            raise RecipeError(
                f"{config.model_type} has no field {name!r}", place=f"model.config.{name}", remedy=suggest(name, known)
            )


def _token_ids(tokenizer: PreTrainedTokenizerBase, model_type: str) -> dict[str, Any]:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")}
    target = target_of(tokenizer)
    if model_type in ("marian", "t5"):
        ids |= {"decoder_start_token_id": ids["pad_token_id"], "forced_eos_token_id": None}
    if model_type == "marian":
        ids |= {"decoder_vocab_size": num_tokens(target)}
        if target is not tokenizer:
            ids |= {"share_encoder_decoder_embeddings": False}
    return {"vocab_size": num_tokens(tokenizer)} | ids


def _from_config(values: dict[str, Any], recipe: Recipe, task: Task) -> PreTrainedModel:
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    values = dict(values)
    cls = _config_class(values.pop("model_type"))
    _check_fields(recipe.model.config, cls())
    try:
        config = cls(**_with_dropout(values, cls().to_dict() | values, recipe.train.dropout))
        _check_kind(config, task)
        model = getattr(transformers, task.model_class).from_config(config, dtype="float32")
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
            message = str(error).strip().split("\n")[0]
            raise RecipeError(
                f"no {task.model_class} can be made of this: {message}",
                place="model.config" if recipe.model.config else "model",
                remedy="the fields must fit together; lmkit's own presets: model.preset=bert-mini, ...",
            ) from None
        raise
    return model


def _with_dropout(values: dict[str, Any], present: Mapping[str, Any], rate: float | None) -> dict[str, Any]:
    """Set every dropout rate that the config has, except for whole layers (``layerdrop``)."""
    if rate is None:
        return values
    names = [
        name for name, value in present.items() if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float)
    ]
    return values | dict.fromkeys(names, rate)


def load_config(source: ModelSource, recipe: Recipe) -> PretrainedConfig:
    """The config of a model directory or hub id."""
    from transformers import AutoConfig

    place = f"model.base: {source.location}"
    try:
        return AutoConfig.from_pretrained(
            source.location, revision=recipe.model.revision or "main", trust_remote_code=recipe.model.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        message = str(error).strip().split("\n")[0]
        remedy = (
            "if you trust its code, model.trust_remote_code=true"
            if "trust_remote_code" in str(error)
            else "is it the directory with config.json, or a hub id that can be reached?"
        )
        raise ModelError(f"no model could be loaded: {message}", place=place, remedy=remedy) from None


def _from_source(recipe: Recipe, task: Task, source: ModelSource) -> tuple[PreTrainedModel, list[str]]:
    base = load_config(source, recipe)
    _check_fields(recipe.model.config, base)
    _check_kind(base, task)
    changes = _with_dropout(recipe.model.config | task.model_config(), base.to_dict(), recipe.train.dropout)
    model, info = from_pretrained(task.model_class, source.location, recipe, changes)
    missing = set(info["missing_keys"]) | {entry[0] for entry in info.get("mismatched_keys", [])}
    return model, new_modules(model, missing)


def from_pretrained(
    model_class: str, location: str, recipe: Recipe, changes: Mapping[str, Any]
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
            revision=recipe.model.revision or "main",
            trust_remote_code=recipe.model.trust_remote_code,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **changes,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        message = str(error).strip().split("\n")[0]
        hint = (
            "weights are read as safetensors only; convert a pytorch_model.bin that you trust with transformers"
            if "safetensors" in str(error)
            else "does the directory hold config.json and model.safetensors of this kind of model?"
        )
        raise ModelError(f"no {model_class} could be loaded: {message}", place=f"model: {location}", remedy=hint) from None
    return model, info


def new_modules(model: Any, missing: set[str]) -> list[str]:
    """The topmost modules all of whose parameters are new, and the owners of single new ones.

    Args:
        missing: parameter names that no weights were loaded for.
    """
    if not missing:
        return []
    owned = {
        name: {f"{name}.{inner}" for inner, _ in module.named_parameters()} for name, module in model.named_modules() if name
    }
    whole = [name for name, parameters in owned.items() if parameters and parameters <= missing]
    found = [name for name in whole if not any(name.startswith(f"{other}.") for other in whole)]
    covered = set().union(*(owned[name] for name in found)) if found else set()
    names = dict(model.named_parameters())
    return found + sorted({name.rpartition(".")[0] for name in missing - covered if name in names and "." in name})


def _check_kind(config: PretrainedConfig, task: Task) -> None:
    if task.generates and not config.is_encoder_decoder:
        raise ModelError(
            f"{config.model_type} is no encoder-decoder, and {task.name} needs one",
            place="model",
            remedy="take a marian, t5, bart, mbart or m2m_100 model, or the preset marian-mini",
        )


def _check_length(config: PretrainedConfig, recipe: Recipe, task: Task) -> None:
    limits = [getattr(config, "max_position_embeddings", None), task.tokenizer.model_max_length]
    limit = min((int(value) for value in limits if value and value < 10**9), default=None)
    if limit is not None and recipe.data.max_length > limit and config.model_type != "t5":
        raise RecipeError(
            f"{recipe.data.max_length} tokens, but this model reads {limit}",
            place="data.max_length",
            remedy=f"data.max_length={limit} or less; longer texts are read in windows",
        )


TASK_TYPES = {"classification": "SEQ_CLS", "ner": "TOKEN_CLS", "translation": "SEQ_2_SEQ_LM", "clm": "CAUSAL_LM"}


def add_lora(model: PreTrainedModel, options: Lora, new: list[str], task: Task) -> Any:
    """Freeze the model and add low-rank updates (Hu et al. 2022); new modules are trained whole and saved.

    Raises:
        RecipeError: ``lora.targets`` names no module of the model.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    targets: Any = options.targets
    if targets == "auto":
        targets = list(KNOWN.get(model.config.model_type, [])) or "all-linear"
    elif isinstance(targets, str) and targets != "all-linear":
        targets = [targets]
    config = LoraConfig(
        task_type=TASK_TYPES.get(task.name),
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        modules_to_save=sorted({name.split(".")[-1] for name in new}) or None,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2's transposed layers
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        linear = sorted(
            {name.split(".")[-1] for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")}
        )
        raise RecipeError(
            f"LoRA found nothing to adapt: {str(error).split('. ')[0]}",
            place="lora.targets",
            remedy=f"linear layers of this model: {', '.join(linear)}",
        ) from None


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
            weights = {name: value for name, value in model.state_dict().items() if not name.startswith("crf.")}
    model.save_pretrained(folder, state_dict=weights)
    if model is not inner:
        inner.config.save_pretrained(folder)  # an adapter alone does not know its labels
        if task.generates:
            inner.generation_config.save_pretrained(folder)  # nor what its output starts with
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's template; the run has a card of its own
    save_tokenizer(task.tokenizer, folder)
    (folder / DESCRIPTION).write_text(json.dumps(describe(task), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def describe(task: Task) -> dict[str, Any]:
    """What is needed to read text with this model: the task, what it learned of the data, the options of reading."""
    kept = {"seed", "data", "masking", "classification", "tagging", "translation", "generation"}
    recipe = task.recipe.model_dump(include=kept) | {"task": task.name}
    recipe["data"] = {key: recipe["data"][key] for key in ("max_length", "overlap", "long_text", "document")}
    return {"task": task.name, "facts": task.facts, "recipe": recipe}


def load_trained(source: ModelSource, task: Task) -> Any:
    """The model as it was saved, for evaluation and prediction: every weight loaded, none made up.

    Raises:
        ModelError: a weight the task needs is missing (a base model that was never fine-tuned), or the adapter's base is gone.
    """
    location, recipe = source.location, task.recipe
    if source.is_adapter:
        model = _load_adapter(source, task)
    else:
        model = _load_whole(source, task)
    if recipe.tagging.crf:
        weights = load_crf(location, recipe.model.revision)
        if weights is None:
            raise ModelError(
                f"this model has no CRF: there is no {CRF_FILE}", place=location, remedy="leave tagging.crf out, or train with it"
            )
        add_crf(model, len(task.facts["labels"]), weights)
    return model.eval()


def _load_whole(source: ModelSource, task: Task) -> Any:
    location, recipe = source.location, task.recipe
    _check_kind(load_config(source, recipe), task)
    model, info = from_pretrained(task.model_class, location, recipe, {})
    if missing := new_modules(model, set(info["missing_keys"]) | {entry[0] for entry in info.get("mismatched_keys", [])}):
        raise ModelError(
            f"this model was not trained for {task.name}: no weights for {', '.join(missing)}",
            place=location,
            remedy=f"fine-tune it first: a recipe with model.base={location}",
        )
    _check_length(model.config, recipe, task)
    task.configure(model)
    return model


def _load_adapter(source: ModelSource, task: Task) -> Any:
    import transformers
    from peft import PeftConfig, PeftModel

    adapter = PeftConfig.from_pretrained(source.location)
    base = str(adapter.base_model_name_or_path)
    if Path(base).is_absolute() and not Path(base).exists():
        raise ModelError(
            f"the adapter's base is gone: {base}",
            place=source.location,
            remedy="put it back, or write its new place into adapter_config.json",
        )
    config = transformers.AutoConfig.from_pretrained(source.location)
    model, _ = from_pretrained(task.model_class, base, task.recipe, {"config": config})
    if config.vocab_size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(config.vocab_size)
    task.configure(model)
    return PeftModel.from_pretrained(model, source.location)
