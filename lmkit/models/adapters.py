"""Adapters: low-rank updates over a frozen base, with every module that is new; loaded again, and merged.

PEFT keeps what it is told to keep. What it has to be told: modules that no weights were loaded for (a BERT
pretrained by MLM has no pooler [peft#310, #577]) and the rows of added tokens [peft#2898].
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.errors import ModelError, RecipeError
from lmkit.heads import num_positions, unwrap
from lmkit.models.pretrained import from_pretrained
from lmkit.models.quantized import check_quantization, quantization
from lmkit.models.source import ModelSource, find_model
from lmkit.recipe.schema import Lora, Model, Recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# of PEFT, by the Auto class of transformers; it has none for masked models
TASK_TYPES = {
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModelForCausalLM": "CAUSAL_LM",
}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def check_adapter_keys(recipe: Recipe) -> None:
    """Refuse keys that would have no effect (RecipeError)."""
    train = recipe.train
    if train.freeze_embeddings and recipe.tokenizer.add_tokens:
        raise RecipeError(
            "the tokens of tokenizer.add_tokens would never be learned",
            place="train.freeze_embeddings",
            remedy="keep one of the two",
        )
    if recipe.lora is None:
        return
    for key, value in (
        ("freeze_embeddings", train.freeze_embeddings),
        ("freeze_layers", train.freeze_layers),
    ):
        if value:
            raise RecipeError(
                "has no effect beside lora, which freezes the whole base",
                place=f"train.{key}",
                remedy="leave it out",
            )


def add_lora(
    model: PreTrainedModel,
    recipe: Recipe,
    source: ModelSource | None,
    *,
    auto_class: str,
    new: list[str],
    added: list[int],
) -> Any:
    """Freeze the model and add low-rank updates (Hu et al. 2022).

    Args:
        source: where the model was loaded from; None for random weights.
        new: modules that no weights were loaded for; trained whole, and saved.
        added: ids of tokens that the base did not know; their rows are trained, and saved.

    Raises:
        RecipeError: the weights are random, ``lora.targets`` names what cannot be adapted, or added tokens and this
            architecture do not go together.
    """
    if source is None:
        raise RecipeError(
            "LoRA adapts trained weights, and this model starts from random ones",
            place="lora",
            remedy="give model.base, or lora: null",
        )
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    options = recipe.lora
    assert options is not None
    targets = _targets(model, options)
    config = LoraConfig(
        task_type=TASK_TYPES.get(auto_class),
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type] # fractions scale as well
        lora_dropout=options.dropout,
        use_rslora=options.variant == "rslora",  # Kalajdzievski 2023
        use_dora=options.variant == "dora",  # Liu et al. 2024
        target_modules=targets,
        # by their whole names: every attention of BART has an out_proj, as its classifier has
        modules_to_save=sorted(new) or None,
        exclude_modules=_named_alike(model, new) or None,
        trainable_token_indices=_added_rows(model, added),
        fan_in_fan_out=any(
            type(module).__name__ == "Conv1D" for module in model.modules()
        ),  # GPT-2's transposed layers
    )
    if options.quantize is not None:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=False
        )  # that is hardware's to say
    table = model.get_input_embeddings().weight
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="You have passed exclude_modules"
            )  # none of which was a target
            adapted = get_peft_model(model, config, revision=recipe.model.revision)
    except ValueError as error:
        raise _nothing_to_adapt(model, new, str(error).split(". ")[0]) from None
    adapted_names: Any = adapted.base_model.targeted_module_names
    for target in targets if isinstance(targets, list) and options.targets != "auto" else []:
        if not any(name == target or name.endswith(f".{target}") for name in adapted_names):
            raise _nothing_to_adapt(adapted.get_base_model(), new, f"no module {target!r}")
    if added and (missed := _past_rows(adapted, table)):
        raise _not_kept(adapted.get_base_model(), f"{', '.join(missed)} would not learn them")
    local = Path(source.location)
    adapted.peft_config["default"].base_model_name_or_path = (
        str(local.resolve()) if local.exists() else source.location
    )
    return adapted


def _named_alike(model: Any, new: Sequence[str]) -> list[str]:
    """Modules whose names end like a new one's: PEFT takes DistilBERT's pre_classifier for its classifier, and trains it whole, too."""
    return [
        name for name, _ in model.named_modules() if name not in new and name.endswith(tuple(new))
    ]


def _targets(model: Any, options: Lora) -> str | list[str]:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    if options.targets == "auto":
        return list(KNOWN.get(model.config.model_type, [])) or "all-linear"
    if options.targets == "all-linear" or isinstance(options.targets, list):
        return options.targets
    return [options.targets]


def _nothing_to_adapt(model: Any, new: list[str], problem: str) -> RecipeError:
    kinds = ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt")
    linear = {
        name.removesuffix(".base_layer").split(".")[-1]
        for name, module in model.named_modules()
        if type(module).__name__ in kinds
        and "lora_" not in name
        and not any(f"{name}.".startswith(f"{each}.") for each in new)
    }
    return RecipeError(
        f"LoRA found nothing to adapt: {problem}",
        place="lora.targets",
        remedy=f"linear layers of this model: {', '.join(sorted(linear))}",
    )


def _added_rows(model: Any, added: list[int]) -> dict[str, list[int]] | None:
    """Embedding -> the rows of added tokens that are trained and saved; what shares them is to follow (``_past_rows``).

    Raises:
        RecipeError: PEFT would keep something else than what was trained.
    """
    if not added:
        return None
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    sharing = [
        module
        for _, module in model.named_modules(remove_duplicate=False)
        if _weight(module) is inputs.weight
    ]
    if getattr(outputs, "bias", None) is not None:  # the heads of MLM
        raise _not_kept(model, "PEFT would lose the bias of their output")
    rows = {_input_name(model): added}
    if outputs is not None and outputs not in sharing:
        rows[next(name for name, module in model.named_modules() if module is outputs)] = added
    return rows


def _past_rows(adapted: Any, table: Any) -> list[str]:
    """The modules that read the embeddings' weights past PEFT's rows: it follows what is tied only where config and class say so."""
    from lmkit.models.trials import in_evaluation

    named = adapted.get_base_model().named_modules(remove_duplicate=False)
    beside = {
        name: module
        for name, module in named
        if _weight(module) is table and "token_adapter" not in name
    }
    read: list[str] = []  # Marian has a table more that nobody reads
    hooks = [
        module.register_forward_hook(lambda *_, name=name: read.append(name))
        for name, module in beside.items()
    ]
    try:
        with in_evaluation(adapted):
            probe_logits(adapted)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(read))


def _not_kept(model: Any, why: str) -> RecipeError:
    return RecipeError(
        f"added tokens and LoRA do not go together for {type(model).__name__}: {why}",
        place="tokenizer.add_tokens",
        remedy="train all weights: lora=null",
    )


def _weight(module: Any) -> Any:
    return getattr(module, "weight", None)


def _input_name(model: Any) -> str:
    """The name under which the model itself looks up its input embeddings, of the several that T5's or Marian's have."""
    import torch

    inputs = model.get_input_embeddings()
    named: list[tuple[str, Any]] = list(model.named_modules(remove_duplicate=False))
    for name, module in named:
        if module is inputs:
            parent, _, last = name.rpartition(".")
            owner = model.get_submodule(parent)
            setattr(owner, last, replaced := torch.nn.Embedding(1, 1))
            is_it = model.get_input_embeddings() is replaced
            setattr(owner, last, inputs)
            if is_it:
                return name
    raise AssertionError(f"{type(model).__name__} has no input embeddings of its own")


def adapter_config(source: ModelSource) -> dict[str, Any]:
    """The content of adapter_config.json."""
    try:
        found: dict[str, Any] = json.loads(
            (Path(source.location) / CONFIG).read_text(encoding="utf-8")
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{CONFIG} cannot be read: {error}", place=source.location) from None
    return found


def base_of(source: ModelSource) -> str:
    """Where the base of an adapter is: a directory or a hub id.

    Raises:
        ModelError: it is gone, or an adapter itself.
    """
    name = adapter_config(source).get("base_model_name_or_path")
    remedy = f"put it back, or write its new place into {CONFIG}"
    if not name:
        raise ModelError(
            f"{CONFIG} names no base (base_model_name_or_path)",
            place=source.location,
            remedy="write it there",
        )
    try:
        base = find_model(str(name), key="base_model_name_or_path")
    except ModelError as error:
        raise ModelError(
            f"the adapter's base is gone: {name} ({error.problem})",
            place=source.location,
            remedy=remedy,
        ) from None
    if base.is_adapter:
        raise ModelError(
            f"the adapter's base is an adapter itself: {name}",
            place=source.location,
            remedy="merge that one first",
        )
    return base.location


def load_adapter(
    source: ModelSource, model_class: str, recipe: Recipe, *, quantized: bool = True
) -> Any:
    """Base and adapter as they were trained; every weight loaded, none made up.

    Args:
        quantized: load a base in 4 or 8 bits where the adapter was trained on such a one and the hardware is here.

    Raises:
        ModelError: the base is gone, the weights are no safetensors, or some are missing.
    """
    import transformers
    from peft import PeftModel

    base, folder = base_of(source), Path(source.location)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"no {WEIGHTS}: weights are read as safetensors only", place=source.location
        )
    options = Model(
        revision=adapter_config(source).get("revision"),
        trust_remote_code=recipe.model.trust_remote_code,
    )
    shapes = _saved_shapes(folder)
    config = transformers.AutoConfig.from_pretrained(
        base, revision=options.revision or "main", trust_remote_code=options.trust_remote_code
    )
    rows = {
        key: getattr(config, key)
        for key in ("vocab_size", "decoder_vocab_size")
        if hasattr(config, key)
    }
    wanted = rows.get("vocab_size", 0)
    if (folder / "config.json").is_file():
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=options.trust_remote_code
        )
        wanted = getattr(config, "vocab_size", wanted)
        config.update(rows)  # the base has its own number of rows, before tokens were added
    elif (labels := _num_labels(shapes)) is not None:
        config.num_labels = labels
    changes: dict[str, Any] = {"config": config}
    if (bits := source.description.get("quantize")) and quantized:
        try:
            check_quantization(bits)
            changes |= quantization(bits, model_class, config, recipe.hardware.precision)
        except RecipeError as error:
            console.warn(
                f"the adapter was trained on a {bits} base, which is loaded in full precision here: {error.problem}"
            )
    model, new = from_pretrained(model_class, base, options, changes)
    if lost := [name for name in new if not any(f".{name}." in f".{key}" for key in shapes)]:
        raise ModelError(
            f"neither the adapter nor its base has weights for {', '.join(lost)}",
            place=source.location,
            remedy=f"is {base} the model it was trained on?",
        )
    if wanted > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(wanted, mean_resizing=False)
    return PeftModel.from_pretrained(model, source.location)


def _saved_shapes(folder: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as weights:
        return {key: list(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118 no mapping


def _num_labels(shapes: dict[str, list[int]]) -> int | None:
    """Labels of an adapter that has no config.json beside it, from the last layer of its head."""
    ends = ("classifier.weight", "score.weight", "classifier.out_proj.weight")
    return next((shape[0] for key, shape in shapes.items() if key.endswith(ends)), None)


def merged(adapted: Any) -> PreTrainedModel:
    """The base with the updates added to its weights: a plain model of the same logits."""
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = adapted.peft_config["default"].peft_type
        raise ModelError(
            f"an adapter of kind {kind} changes no weights, so there is nothing to merge",
            place="adapter_config.json",
        )
    is_tied = getattr(adapted.get_base_model().config, "tie_word_embeddings", False)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Input and output embeddings are no longer tied"
        )  # see below
        model: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    output = _weight(model.get_output_embeddings())
    shared = [
        module
        for _, module in model.named_modules(remove_duplicate=False)
        if _weight(module) is output
    ]
    if is_tied and output is not None and len(shared) > 1:
        model.config.tie_word_embeddings = (
            True  # PEFT compares with the encoder's embeddings alone, and unties two vocabularies
        )
    return model


def probe_logits(model: Any) -> torch.Tensor:
    """Logits of two made-up texts that together touch tokens from all over the vocabulary, the last ones included.

    For encoder-decoders each ends with the end mark and has no other: where BART's and T5's classifiers look.
    """
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    length = min(64, rows, num_positions(unwrap(model)) or 64)
    ids = torch.linspace(0, rows - 1, length).round().long()
    ids = torch.stack([ids, ids.flip(0)])
    if model.config.is_encoder_decoder:
        ends = model.config.eos_token_id
        end = ends[0] if isinstance(ends, list) else ends
        if end is not None:
            ids = torch.cat(
                [
                    ids.masked_fill(ids == end, (end + 1) % rows)[:, : length - 1],
                    ids.new_full((2, 1), end),
                ],
                dim=1,
            )
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids.clamp(
            max=(getattr(model.config, "decoder_vocab_size", None) or rows) - 1
        )
    model.eval()
    with (
        torch.inference_mode()
    ):  # one by one: GPT-2's classifier takes no batch without a padding token
        return torch.cat(
            [
                model(
                    **{name: row[None] for name, row in zip(batch, text, strict=True)}
                ).logits.float()
                for text in zip(*batch.values(), strict=True)
            ]
        )
