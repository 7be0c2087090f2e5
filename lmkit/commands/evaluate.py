"""``lmkit eval``: a run, a model directory or a hub id, on a split -> metrics with intervals and predictions."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.errors import DataError, LmkitError, ModelError, RecipeError, suggest
from lmkit.evaluation.options import check_eval_keys
from lmkit.models.source import ModelSource, find_model
from lmkit.recipe import Recipe, load_recipe
from lmkit.recipe.load import SUFFIXES, shipped_recipes
from lmkit.recipe.schema import Eval
from lmkit.run import Run, is_run
from lmkit.tasks.registry import TASKS, task_class

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lmkit.data.rows import Rows
    from lmkit.data.splits import Splits
    from lmkit.tasks.answers import Record
    from lmkit.tasks.base import Task


def evaluate(
    source: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    output: str | None = None,
    splits: Splits | None = None,
    limited: Collection[str] = (),
) -> dict[str, Any]:
    """Evaluate on ``data.test``, or where there is none on ``data.validation``, and say which.

    Args:
        source: a run, a model directory, a hub id; or a recipe, whose run is evaluated where it exists
            and whose ``model.base`` as it stands otherwise.
        splits: rows that were read already.
        limited: the metrics that ``--fail-under`` names.

    Returns:
        The content of metrics.json.
    """
    recipe, found, run = find_subject(source, overrides, output=output)
    check_eval_keys(recipe)
    run.check_place()
    check_metrics(recipe)
    from lmkit.data.sources import find_files
    from lmkit.data.splits import load_splits

    cls = task_class(recipe.task)
    split = "test" if recipe.data.test is not None or recipe.data.fold is not None else "validation"
    if splits is None:
        if (
            split == "validation"
            and recipe.data.validation is None
            and recipe.data.validation_fraction is None
        ):
            raise RecipeError("no data to evaluate on", place="data.test", remedy="data.test=FILE")
        if (
            "facts" not in found.description
            and (source_of_split := getattr(recipe.data, split)) is not None
        ):
            find_files(
                source_of_split, key=f"data.{split}", folders=[Path.cwd()]
            )  # before a config is loaded
        facts = found.description.get("facts") or facts_of(found, recipe, split)
        splits = load_splits(recipe, cls, wanted=(split,), facts=facts)
    elif split not in splits.rows:
        split = next(iter(splits.rows))
    if not recipe.eval.metrics:  # whose names nobody knows before
        task_alone = cls(recipe, splits.facts, None).for_evaluation()  # metrics need no tokens
        _check_limited(limited, {"loss", *task_alone.metrics, *task_alone.further})
    train = baseline_rows(recipe, splits) if recipe.eval.baseline else None
    others = other_rows(recipe, cls, splits, split)

    from lmkit.data.encode import encode, say_left_out
    from lmkit.data.rows import Rows
    from lmkit.data.splits import provenance
    from lmkit.evaluation.analysis import Background
    from lmkit.evaluation.evaluate import evaluate_split, metrics_table, predict_records
    from lmkit.models.build import load_trained
    from lmkit.tasks.answers import answer_of
    from lmkit.train.device import build_accelerator, micro_batch_tokens

    task = cls(recipe, splits.facts, tokenizer_of(recipe, found)).for_evaluation()
    encoded = encode(splits.rows[split], task)
    say_left_out(encoded, recipe.data, split=split)
    console.say(f"evaluating on data.{split}: {len(encoded.rows)} rows")
    accelerator = build_accelerator(recipe.hardware.model_copy(update={"processes": "auto"}))
    model = load_trained(found, task).to(accelerator.device)
    budget = 2 * micro_batch_tokens(recipe.hardware, accelerator.device)
    fitted_on = None
    if isinstance(others["validation"], Rows):
        aside = encode(others["validation"], task)
        say_left_out(aside, recipe.data, split="validation")
        fitted_on = list(predict_records(model, task, aside, accelerator, budget=budget))
        if fitted_on and not answer_of(task).has_temperature:
            raise RecipeError(
                "a temperature is fitted where each text has one label",
                place="eval.temperature",
                remedy="leave it out",
            )
    background = Background(
        others["train"], fitted_on, Run(found.run) if found.run else None, provenance(splits)
    )
    beside = None
    if train is not None:
        from lmkit.evaluation.baselines import baselines, baselines_table

        def beside(records: Sequence[Record]) -> dict[str, Any]:
            return baselines(task, train, encoded, records, recipe.eval, seed=recipe.seed)

    result = evaluate_split(
        model,
        task,
        encoded,
        accelerator,
        split=split,
        options=recipe.eval,
        budget=budget,
        folder=run.eval_folder(split),
        background=background,
        beside=beside,
    )
    if result:
        console.say(metrics_table(result))
        if train is not None:
            console.say(f"\n{baselines_table(result)}")
        console.say(f"written to {run.eval_folder(split)}")
    return result


def thresholds(given: Sequence[str]) -> dict[str, float]:
    """``METRIC=NUMBER`` arguments of ``--fail-under``.

    Raises:
        LmkitError: one is not of that form.
    """
    found = {}
    for entry in given:
        name, _, number = entry.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise LmkitError(
                f"{entry!r} is not METRIC=NUMBER",
                place="--fail-under",
                remedy="for example --fail-under f1=0.42",
            ) from None
    return found


def failures(found: Mapping[str, Any], limits: Mapping[str, float], *, strict: bool) -> list[str]:
    """What keeps an evaluation from passing; empty where it passes.

    Args:
        found: the content of metrics.json. limits: what a metric has to reach; a loss, or any other of which less is better, must not exceed it.
        strict: the worse end of the interval has to.

    Raises:
        LmkitError: no such metric, or no interval to be strict about.
    """
    from lmkit.evaluation.evaluate import lower_is_better

    metrics = {"loss": {"value": found["loss"], "low": None, "high": None}} | dict(found["metrics"])
    said = []
    _check_limited(limits, metrics)
    for name, limit in limits.items():
        is_loss = lower_is_better(name)
        value = metrics[name][("high" if is_loss else "low") if strict else "value"]
        if value is None and strict and metrics[name]["value"] is not None:
            raise LmkitError(
                f"{name} has no interval",
                place="--strict",
                remedy="leave it out, or eval.resamples=1000",
            )
        if value is None or (value > limit if is_loss else value < limit):
            end = f" ({'upper' if is_loss else 'lower'} end of the interval)" if strict else ""
            shown = "undefined" if value is None else f"{value:.4f}"
            said.append(f"{name} is {shown}{end}, {'over' if is_loss else 'under'} {limit:g}")
    return said


def _check_limited(names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise LmkitError(
                f"no metric {name!r} in this evaluation",
                place="--fail-under",
                remedy=suggest(name, known),
            )


def other_rows(
    recipe: Recipe, cls: type[Task], splits: Splits, split: str
) -> dict[str, Rows | str]:
    """The training rows, to compare with, and the validation rows where a temperature is wanted; or why there are none.

    Raises:
        RecipeError: ``eval.temperature`` without validation rows that are not those evaluated.
    """
    from lmkit.data.splits import load_splits

    data = recipe.data
    found: dict[str, Rows | str] = {"train": "no data.train is given", "validation": "not wanted"}
    if recipe.eval.temperature:
        if split == "validation" or (data.validation is None and data.validation_fraction is None):
            raise RecipeError(
                "a temperature is fitted on validation rows, and reported on others",
                place="eval.temperature",
                remedy="give data.validation and data.test, or leave it out",
            )
        found["validation"] = load_splits(
            recipe, cls, wanted=("validation",), facts=splits.facts
        ).rows["validation"]
    if "train" in splits.rows:
        found["train"] = splits.rows["train"]
    elif data.train is not None:
        try:  # without the columns of eval.slices, which training files need not have
            plain = (
                recipe
                if data.validation_fraction or data.fold
                else recipe.model_copy(update={"eval": Eval()})
            )
            found["train"] = load_splits(plain, cls, wanted=("train",), facts=splits.facts).rows[
                "train"
            ]
        except (DataError, RecipeError) as error:
            found["train"] = f"the training data cannot be read: {str(error).splitlines()[0]}"
            console.warn(f"rows that also stand in training were not looked for: {found['train']}")
    return found


def check_metrics(recipe: Recipe) -> None:
    """Refuse modules of ``eval.metrics`` that are not there, or have nothing to measure."""
    if not recipe.eval.metrics:
        return
    from lmkit.metrics.custom import find_module

    if recipe.task and task_class(recipe.task).stage == "pretrain":
        raise RecipeError(
            "a language model has no predictions to hand on",
            place="eval.metrics",
            remedy="leave it out",
        )
    for name in recipe.eval.metrics:
        find_module(name, trust_remote_code=recipe.model.trust_remote_code)


def baseline_rows(recipe: Recipe, splits: Splits) -> Rows:
    """The training rows that baselines are learned from."""
    from lmkit.data.splits import load_splits
    from lmkit.evaluation.baselines import check_baselines

    check_baselines(recipe.task, recipe.data.train is not None)
    if "train" in splits.rows:
        return splits.rows["train"]
    return load_splits(recipe, task_class(recipe.task), wanted=("train",), facts=splits.facts).rows[
        "train"
    ]


def find_subject(
    source: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str],
    *,
    output: str | None = None,
) -> tuple[Recipe, ModelSource, Run]:
    """What to evaluate or predict with: options, weights, and the run directory that results go to.

    Raises:
        RecipeError: a key is set that was decided when the run was trained.
        ModelError: nothing is there, or it was trained for another task.
    """
    output = str(Path(output).expanduser()) if output else None
    if isinstance(source, (Mapping, Recipe)) or _is_recipe(str(source)):
        recipe = load_recipe(source, overrides)
        if recipe.seeds > 1 or recipe.data.folds is not None:
            raise RecipeError(
                "this recipe stands for several runs, which are evaluated as they are made",
                place="seeds" if recipe.seeds > 1 else "data.folds",
                remedy=f"name one of them: {recipe.output}/{'seed-' + str(recipe.seed) if recipe.seeds > 1 else 'fold-1'}",
            )
        trained = output if output and is_run(output) else recipe.output
        if is_run(trained):
            found = find_model(trained, key="output")
            return _with_task(recipe, found), found, Run(output or trained)
        if recipe.model.base is None:
            raise ModelError(
                "this recipe was not trained yet",
                place=recipe.output,
                remedy="train it first, or name a run, a model directory or a hub id",
            )
        found = find_model(recipe.model.base)
        # not where the recipe's own run will be: training wants that place empty
        return _with_task(recipe, found), found, Run(output or f"{recipe.output}-base")
    found = find_model(str(source), key="RUN")
    if found.run is not None:
        recipe = load_recipe(Run(found.run).recipe_file, overrides)
        _refuse_decided(overrides, found.run)
        return _with_task(recipe, found), found, Run(output or found.run)
    name = Path(source).resolve().name if Path(source).is_dir() else str(source).split("/")[-1]
    name = re.sub(r"[^\w.\- ]", "-", name).lstrip("-. ") or "model"
    described = found.description.get("recipe", {})
    recipe = load_recipe(
        {**described, "name": name, "output": output or f"runs/eval-{name}"}, overrides
    )
    return _with_task(recipe, found), found, Run(recipe.output)


DECIDED = (
    "data.labels",
    "tagging.crf",
    "tagging.crf_learning_rate",
    "classification.kind",
    "classification.class_weights",
)


def _refuse_decided(overrides: Sequence[str], run: Path) -> None:
    """What a trained run reads is not to be set again: it would have no effect, and nobody would notice."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        decided = (
            key.split(".")[0] in ("tokenizer", "lora", "train", "translation") or key in DECIDED
        )
        if decided or (
            key.split(".")[0] == "model"
            and key not in ("model.trust_remote_code", "model.revision")
        ):
            raise RecipeError(
                "has no effect on a run that is trained",
                place=key,
                remedy=f"leave it out, or train it anew: {run}",
            )


def tokenizer_of(recipe: Recipe, found: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer a model was trained with: its own, or ``tokenizer.base`` beside one that lmkit did not make."""
    from lmkit.models.tokenizer import for_words, load_tokenizer

    place = (
        found.location if found.description or not recipe.tokenizer.base else recipe.tokenizer.base
    )
    revision = recipe.model.revision if place == found.location else None  # that of the model alone
    task, trust = task_class(recipe.task), recipe.model.trust_remote_code
    tokenizer = load_tokenizer(
        place, revision=revision, trust_remote_code=trust, slow=task.generates
    )
    words = any(field.kind == "words" for field in task.fields)
    return (
        for_words(tokenizer, place, revision=revision, trust_remote_code=trust)
        if words
        else tokenizer
    )


def _is_recipe(name: str) -> bool:
    if Path(name).is_dir():
        return False
    shipped = shipped_recipes()
    return (
        name.endswith(SUFFIXES)
        or name in shipped
        or any(known.endswith("/" + name) for known in shipped)
    )


def _with_task(recipe: Recipe, found: ModelSource) -> Recipe:
    """The recipe with the task that the model says it was made for."""
    made_for = found.description.get("task", recipe.task)
    if recipe.task and recipe.task != made_for:
        raise ModelError(
            f"this model was trained for {made_for}, not for {recipe.task}",
            place=found.location,
            remedy=f"fine-tune it first: a recipe with model.base={found.location}",
        )
    if recipe.task:
        return recipe
    if "task" in found.description:
        return recipe.model_copy(update={"task": found.description["task"]})
    raise RecipeError(
        "which task? lmkit did not make this model, so it does not say",
        place="task",
        remedy=f"add task=NAME: {', '.join(TASKS)}",
    )


def facts_of(found: ModelSource, recipe: Recipe, split: str | None = None) -> dict[str, Any]:
    """What a model that lmkit did not make knows of its labels, ``id2label`` of its config; and whether ``split`` has pairs."""
    if not any(field.kind in ("label", "tags") for field in task_class(recipe.task).fields):
        return {}
    from lmkit.models.load import load_config

    config = load_config(found, recipe)
    names = config.id2label or {}
    facts: dict[str, Any] = {
        "labels": recipe.data.labels or [str(names[number]) for number in sorted(names)]
    }
    if recipe.task != "classification":
        return facts
    if recipe.classification.kind != "auto":
        facts["kind"] = recipe.classification.kind
    elif config.problem_type:
        facts["kind"] = config.problem_type.removesuffix("_classification")
    elif len(names) == 1:
        facts["kind"] = "regression"  # as Hugging Face's models decide
    facts["is_pair"] = "text_pair" in recipe.data.columns
    if split is not None and not facts["is_pair"]:
        from lmkit.data.check import peek

        first_rows = peek(
            getattr(recipe.data, split),
            key=f"data.{split}",
            split=split,
            columns=recipe.data.columns,
            document=recipe.data.document,
            folders=[Path.cwd()],
        )
        fields = task_class(recipe.task).fields_of(recipe, None, first_rows)
        facts["is_pair"] = any(field.name == "text_pair" for field in fields)
    return facts
