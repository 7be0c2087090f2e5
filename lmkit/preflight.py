"""Check a recipe before it is run: everything that can be said of it without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmkit.errors import RecipeError
from lmkit.models.source import ModelSource
from lmkit.recipe import Recipe
from lmkit.tasks.registry import problem, problems

if TYPE_CHECKING:
    from lmkit.data.splits import Splits

COMMAND_OF = {"pretrain": "lmkit pretrain", "finetune": "lmkit finetune"}


def check_recipe(recipe: Recipe, stage: str) -> None:
    """Refuse what is wrong in a recipe for training, whatever its model and its data are."""
    from lmkit.evaluation.options import check_eval_keys
    from lmkit.models.quantized import check_quantization

    check_stage(recipe, stage)
    if recipe.lora is not None and recipe.lora.quantize is not None:
        check_quantization(recipe.lora.quantize)
    check_eval_keys(recipe)
    check_metrics(recipe)


def check_stage(recipe: Recipe, stage: str) -> None:
    """Refuse a recipe without a task, or with one of the other stage."""
    if recipe.task and problem(recipe.task).stage == stage:
        return
    raise _wrong_stage(recipe, stage)


def _wrong_stage(recipe: Recipe, stage: str) -> RecipeError:
    names = [solved.name for solved in problems() if solved.stage == stage]
    tasks = f"one of: {', '.join(names)}"
    if not recipe.task:
        return RecipeError("no task", place="task", remedy=tasks)
    command = COMMAND_OF[problem(recipe.task).stage]
    return RecipeError(
        f"{recipe.task} is not for lmkit {stage}", place="task", remedy=f"use {command}, or {tasks}"
    )


def check_model_keys(recipe: Recipe, source: ModelSource | None) -> None:
    """Refuse a model section that contradicts itself, its tokenizer, or the source of its weights."""
    from lmkit.models.adapters import check_adapter_keys
    from lmkit.train.optim import check_optimizer

    check_adapter_keys(recipe)
    check_optimizer(recipe)
    if recipe.model.preset:
        _check_preset(recipe)
    if source is None:
        _check_random_weights(recipe)
    if recipe.tokenizer.train is not None:
        _check_new_tokenizer(recipe, source)


def _check_preset(recipe: Recipe) -> None:
    """Refuse a preset beside weights, and one that the task cannot use."""
    from lmkit.models.presets import is_encoder_decoder, preset_config

    preset = recipe.model.preset
    assert preset is not None
    if recipe.model.base:
        raise RecipeError(
            "given beside model.base", place="model.preset", remedy="keep one of the two"
        )
    preset_config(preset, max_length=recipe.data.max_length)
    solved = problem(recipe.task)
    if solved.architecture == "encoder-decoder" and not is_encoder_decoder(preset):
        raise RecipeError(
            f"{preset} is no encoder-decoder, and {recipe.task} needs one",
            place="model.preset",
            remedy=f"for example {solved.smoke_preset}-mini",
        )


def _check_random_weights(recipe: Recipe) -> None:
    """Refuse a model of random weights without a shape or a tokenizer, or with an adapter."""
    model = recipe.model
    if not model.preset and "model_type" not in model.config:
        raise RecipeError(
            "no model: neither model.base nor model.preset is given",
            place="model",
            remedy="model.base=RUN_OR_DIRECTORY for trained weights, model.preset=bert-mini for random ones",
        )
    if recipe.lora is not None:
        raise RecipeError(
            "LoRA adapts trained weights, and this model starts from random ones",
            place="lora",
            remedy="give model.base, or lora=null",
        )
    if recipe.tokenizer.base is None and recipe.tokenizer.train is None:
        raise RecipeError(
            "a model with random weights has no tokenizer",
            place="tokenizer",
            remedy="tokenizer.train={algorithm: bpe, vocab_size: 8000} learns one from data.train; or give tokenizer.base",
        )


def _check_new_tokenizer(recipe: Recipe, source: ModelSource | None) -> None:
    """Refuse to train a tokenizer for weights that have one, and two where one is enough."""
    _check_joint(recipe)
    if source is not None:
        raise RecipeError(
            "a new tokenizer does not fit the weights of model.base",
            place="tokenizer.train",
            remedy="leave it out, or start from random weights with model.preset",
        )


def _check_joint(recipe: Recipe) -> None:
    """Refuse two tokenizers where there is no model, or no text, for two."""
    if recipe.tokenizer.train is None or recipe.tokenizer.train.joint:
        return
    family = recipe.model.config.get("model_type") or (recipe.model.preset or "").partition("-")[0]
    fields = problem(recipe.task).fields(recipe)
    reason, remedy = None, "leave it out"
    if not any(field.gold and field.kind == "text" for field in fields):
        reason = "has no effect: only translation has two languages"
    elif recipe.tokenizer.train.files is not None:
        reason, remedy = (
            "given beside tokenizer.train.files, which do not say what language they are",
            "learn from data.train",
        )
    elif family != "marian":
        reason, remedy = (
            f"{family} has one vocabulary for both languages",
            "leave it out, or take model.preset=marian-mini",
        )
    if reason:
        raise RecipeError(reason, place="tokenizer.train.joint", remedy=remedy)


def check_choice(recipe: Recipe, splits: Splits) -> None:
    """Refuse a ``train.select_best`` that the task, which may depend on the labels, does not know."""
    from lmkit.train.plans import metric_of

    problem(recipe.task).check(recipe, splits.facts)
    metric_of(recipe, splits.facts, "validation" in splits.rows)


def check_metrics(recipe: Recipe) -> None:
    """Refuse modules of ``eval.metrics`` that are not there, or have nothing to measure."""
    if not recipe.eval.metrics:
        return
    from lmkit.metrics.custom import find_module

    fields = problem(recipe.task).fields(recipe) if recipe.task else ()
    if recipe.task and not any(field.gold for field in fields):
        raise RecipeError(
            "a language model has no predictions to hand on",
            place="eval.metrics",
            remedy="leave it out",
        )
    for name in recipe.eval.metrics:
        find_module(name, trust_remote_code=recipe.model.trust_remote_code)
