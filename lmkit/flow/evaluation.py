"""Evaluate a trained model on a split: read the rows, load the model, write metrics and report."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmkit import console
from lmkit.errors import DataError, LmkitError, RecipeError, suggest
from lmkit.evaluation.options import check_eval_keys
from lmkit.preflight import check_metrics
from lmkit.recipe import Recipe
from lmkit.recipe.schema import Eval
from lmkit.run import Run
from lmkit.subject import Subject, facts_of, tokenizer_of
from lmkit.tasks.registry import problem

if TYPE_CHECKING:
    from lmkit.data.rows import Rows
    from lmkit.data.splits import Splits
    from lmkit.evaluation.forward import Forward
    from lmkit.records import Metrics, Record
    from lmkit.tasks.base import Task


@dataclass(frozen=True)
class OtherRows:
    """The rows that an evaluation looks at beside those it evaluates.

    Args:
        train: rows of training, or why there are none.
        validation: rows that a temperature is fitted on; None: it is not asked for.
        baseline: rows that baselines are learned from; None: they are not asked for.
    """

    train: Rows | str
    validation: Rows | None
    baseline: Rows | None


def evaluate_subject(
    subject: Subject, *, splits: Splits | None = None, limited: Collection[str] = ()
) -> Metrics | None:
    """Evaluate on ``data.test``, or where there is none on ``data.validation``, and say which.

    Args:
        splits: rows that were read already.
        limited: the metrics that ``--fail-under`` names.

    Returns:
        The content of metrics.json; None on all ranks but the first.
    """
    recipe = subject.recipe
    check_eval_keys(recipe)
    subject.run.check_place()
    check_metrics(recipe)
    data = recipe.data
    split = "test" if data.test is not None or data.fold is not None else "validation"
    if splits is None:
        splits = _load_split(subject, split)
    elif split not in splits.rows:
        split = next(iter(splits.rows))
    if not recipe.eval.metrics:  # whose names nobody knows before
        solved = problem(recipe.task)
        solved.check(recipe, splits.facts)
        measures = solved.measured(recipe, splits.facts)
        check_limited(limited, {"loss", *(metric.name for metric in measures)})
    return _evaluate_rows(subject, splits, split, _other_rows(recipe, splits, split))


def check_limited(names: Collection[str], metrics: Collection[str]) -> None:
    """Refuse limits of ``--fail-under`` for metrics that the evaluation does not have."""
    for name in names:
        if name not in metrics:
            raise LmkitError(
                f"no metric {name!r} in this evaluation",
                place="--fail-under",
                remedy=suggest(name, metrics),
            )


def _load_split(subject: Subject, split: str) -> Splits:
    """Load the rows to evaluate on, with the labels that the model knows."""
    from lmkit.data.sources import find_files
    from lmkit.data.splits import load_splits

    recipe, data = subject.recipe, subject.recipe.data
    if split == "validation" and data.validation is None and data.validation_fraction is None:
        raise RecipeError("no data to evaluate on", place="data.test", remedy="data.test=FILE")
    files = getattr(data, split)
    if "facts" not in subject.source.description and files is not None:
        # a missing file is said before a config is loaded
        find_files(files, key=f"data.{split}")
    facts = dict(facts_of(subject.source, recipe, split))
    return load_splits(recipe, problem(recipe.task), wanted=(split,), facts=facts)


def _other_rows(recipe: Recipe, splits: Splits, split: str) -> OtherRows:
    """Load the rows of other splits that the evaluation needs.

    Raises:
        RecipeError: ``eval.temperature`` without validation rows that are not those evaluated.
    """
    baseline = _baseline_rows(recipe, splits) if recipe.eval.baseline else None
    validation = None
    if recipe.eval.temperature:
        validation = _temperature_rows(recipe, splits, split)
    return OtherRows(_training_rows(recipe, splits), validation, baseline)


def _baseline_rows(recipe: Recipe, splits: Splits) -> Rows:
    """Return the training rows that baselines are learned from."""
    from lmkit.evaluation.baselines import check_baselines

    check_baselines(recipe, splits.facts)
    if "train" in splits.rows:
        return splits.rows["train"]
    return _load(recipe, splits, "train")


def _temperature_rows(recipe: Recipe, splits: Splits, split: str) -> Rows:
    data = recipe.data
    if split == "validation" or (data.validation is None and data.validation_fraction is None):
        raise RecipeError(
            "a temperature is fitted on validation rows, and reported on others",
            place="eval.temperature",
            remedy="give data.validation and data.test, or leave it out",
        )
    return _load(recipe, splits, "validation")


def _training_rows(recipe: Recipe, splits: Splits) -> Rows | str:
    """Return the training rows, to compare with, or why there are none."""
    if "train" in splits.rows:
        return splits.rows["train"]
    if recipe.data.train is None:
        return "no data.train is given"
    if not (recipe.data.validation_fraction or recipe.data.fold):
        # without the columns of eval.slices, which training files need not have
        recipe = recipe.model_copy(update={"eval": Eval()})
    try:
        return _load(recipe, splits, "train")
    except (DataError, RecipeError) as error:
        reason = f"the training data cannot be read: {str(error).splitlines()[0]}"
        console.warn(f"rows that also stand in training were not looked for: {reason}")
        return reason


def _load(recipe: Recipe, splits: Splits, split: str) -> Rows:
    from lmkit.data.splits import load_splits

    solved = problem(recipe.task)
    return load_splits(recipe, solved, wanted=(split,), facts=splits.facts).rows[split]


def _evaluate_rows(
    subject: Subject, splits: Splits, split: str, others: OtherRows
) -> Metrics | None:
    """Load the model, evaluate it, and show and write what comes out."""
    from lmkit.data.encode import encode, say_left_out
    from lmkit.data.splits import provenance
    from lmkit.evaluation.analysis import Background
    from lmkit.evaluation.baselines import baselines_table
    from lmkit.evaluation.evaluate import evaluate_split, metrics_table
    from lmkit.models.tokenizer import tokenizer_hash

    recipe, source = subject.recipe, subject.source
    tokenizer = tokenizer_of(recipe, source)
    solved = problem(recipe.task)
    task = solved.scorer(solved.task(recipe, splits.facts, tokenizer))
    tokens_hash = tokenizer_hash(tokenizer)
    encoded = encode(splits.rows[split], task, tokens_hash)
    say_left_out(encoded, recipe.data, split=split)
    console.say(f"evaluating on data.{split}: {len(encoded.rows)} rows")
    forward = load_forward(subject, task)
    fitted_on: list[Record] | None = None
    if others.validation is not None:
        _check_temperature(task)
        aside = encode(others.validation, task, tokens_hash)
        say_left_out(aside, recipe.data, split="validation")
        fitted_on = list(forward.predictions(aside))
    background = Background(
        train=others.train,
        fitted_on=fitted_on,
        run=Run(source.run) if source.run else None,
        data=provenance(splits),
        baseline=others.baseline,
    )
    folder = subject.run.eval_folder(split)
    metrics = evaluate_split(
        forward, encoded, split=split, options=recipe.eval, folder=folder, background=background
    )
    if metrics is None:
        return None
    console.say(metrics_table(metrics))
    if metrics.baselines is not None:
        console.say(f"\n{baselines_table(metrics)}")
    console.say(f"written to {folder}")
    return metrics


def load_forward(subject: Subject, task: Task) -> Forward:
    """Load the model of a subject, ready to predict."""
    from lmkit.evaluation.forward import Forward
    from lmkit.models.load import load_trained
    from lmkit.train.device import micro_batch_tokens
    from lmkit.train.parallelism import start_processes

    hardware = subject.recipe.hardware
    processes = start_processes(hardware.model_copy(update={"processes": "auto"}))
    model = load_trained(subject.source, task).to(processes.device)
    budget = 2 * micro_batch_tokens(hardware, processes.device)
    return Forward(task, model, processes, budget)


def _check_temperature(task: Task) -> None:
    if not task.answer.has_temperature:
        raise RecipeError(
            "a temperature is fitted where each text has one label",
            place="eval.temperature",
            remedy="leave it out",
        )
