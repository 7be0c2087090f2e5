"""One training run from end to end: prepare, train, keep the best, save, prove the reload, evaluate."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from lmkit import console
from lmkit.batch import Batch, flat
from lmkit.data.encode import encode
from lmkit.data.splits import Splits, cache_folder, provenance
from lmkit.errors import ModelError, RunError
from lmkit.evaluation.analysis import Background
from lmkit.evaluation.evaluate import evaluate_split, metrics_table
from lmkit.evaluation.forward import Forward
from lmkit.models.load import load_trained
from lmkit.models.memory import free_cached_memory
from lmkit.models.save import save_model
from lmkit.models.source import ModelSource, find_model
from lmkit.models.tokenizer import tokenizer_hash
from lmkit.recipe.load import dump_recipe
from lmkit.recipe.schema import Recipe
from lmkit.records import Manifest, Metrics
from lmkit.run import Run, atomic_directory, write_json, write_rejects, write_text
from lmkit.tasks.base import Task
from lmkit.train import card
from lmkit.train.averages import use_average
from lmkit.train.checkpoint import average_weights, averaged, checkpoint_steps, load_weights
from lmkit.train.device import micro_batch_tokens
from lmkit.train.manifest import announce, end_of, start_manifest
from lmkit.train.plans import evaluation_interval, metric_of
from lmkit.train.prepare import prepare
from lmkit.train.progress import Progress
from lmkit.train.resume import find_progress, restore
from lmkit.train.session import Session
from lmkit.train.setup import Setup, decide, set_up
from lmkit.train.summary import TrainingSummary

LOCKED_SECONDS = 10  # to wait for a process before that is just ending
RELOAD_TOLERANCE = 1e-4  # largest difference of logits after a fresh load, fp32


def fit(
    recipe: Recipe,
    splits: Splits,
    source: ModelSource | None,
    run: Run,
    *,
    resume: bool,
    overwrite: bool = False,
) -> TrainingSummary:
    """Train what the recipe says into the run directory.

    Args:
        overwrite: a run that is there is removed, once it is known that this one can begin.

    Raises:
        LmkitError: a mistake of the user's. TrainingStopped: the loss is not finite. Interrupted: by a signal.
    """
    with _alone_in(run) if console.is_first_process() else nullcontext():
        return _fit(recipe, splits, source, run, resume=resume, overwrite=overwrite)


@contextmanager
def _alone_in(run: Run) -> Iterator[None]:
    """Keep a second process out of the run: each would cut the other's log and remove its checkpoints.

    The system frees the lock when a process ends, however it ends; loader workers may outlive theirs by seconds.

    Raises:
        RunError: one is training there.
    """
    from filelock import FileLock, Timeout

    name = hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:32]
    cache_folder().mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache_folder() / f"run-{name}.lock")
    try:
        lock.acquire(timeout=LOCKED_SECONDS)
    except Timeout:
        raise RunError(
            "another process is training into this directory",
            place=str(run.path),
            remedy="wait for it or end it; or give another -o/--output",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _fit(
    recipe: Recipe,
    splits: Splits,
    source: ModelSource | None,
    run: Run,
    *,
    resume: bool,
    overwrite: bool,
) -> TrainingSummary:
    started = time.perf_counter()
    prepared = prepare(recipe, splits, source)
    progress = find_progress(run, recipe, prepared, resume=resume)
    setup = set_up(recipe, prepared, folder=str(run.path))
    metric = metric_of(recipe, setup.task.facts, "validation" in prepared.encoded)
    manifest = start_manifest(setup)
    if setup.parallelism.is_first:
        run.start(resume=resume, overwrite=overwrite)
        _write_start(run, setup, manifest)
    if line := setup.parallelism.describe():
        console.say(line)
    announce(manifest, setup.total, metric)
    if resume:
        restore(run, setup, progress)
    if setup.parallelism.is_first:
        run.cut_log(progress.step, progress.evaluated_step)
    if recipe.logging.to:
        setup.parallelism.accelerator.init_trackers(recipe.name)

    decide(setup, progress.decisions)
    with setup.computation.undo:
        Session(setup, run, progress, metric=metric).run()
    averaged_steps = choose_weights(setup, run, progress)
    setup.end_training()
    tune_on_validation(setup)
    save(setup, run)
    metrics = evaluate(setup, run)
    setup.parallelism.wait()
    setup.parallelism.end()

    seconds = time.perf_counter() - started
    manifest = replace(manifest, ending=end_of(setup, progress, averaged_steps, seconds))
    if setup.parallelism.is_first:
        write_json(run.manifest_file, manifest.to_json())
        write_text(run.card_file, card.model_card(recipe, setup.task, manifest, metrics))
    return TrainingSummary(
        run=str(run.path),
        task=setup.task.name,
        steps=progress.step,
        tokens=progress.tokens,
        seconds=round(progress.seconds, 3),
        best_step=progress.best_step if progress.best_step is not None else progress.step,
        selected_by=metric,
        validation=metrics,
    )


def _write_start(run: Run, setup: Setup, manifest: Manifest) -> None:
    """Write what is known before the first step; of a resumed run, too: it may have more steps now."""
    write_text(run.recipe_file, dump_recipe(setup.recipe))
    write_rejects(run.rejects_file, setup.prepared.splits.rejected)
    write_json(run.manifest_file, manifest.to_json())


def choose_weights(setup: Setup, run: Run, progress: Progress) -> list[int]:
    """Give the model the best weights, or the mean of the last ones up to them; return the steps of a mean."""
    use_average(setup.optimizer)
    recipe, best_step = setup.recipe, progress.best_step
    every, number = evaluation_interval(recipe, setup.plan), recipe.train.average_checkpoints
    stored = checkpoint_steps(run)
    steps = averaged(stored, number, every=every, last=progress.step, best=best_step)
    if number and len(steps) < number:
        console.warn(
            f"train.average_checkpoints: {number}, but there were only {len(steps)} evaluations; train.eval_every makes more"
        )
    if steps:
        average_weights(run, steps, setup.model, setup.parallelism)
        numbers = ", ".join(map(str, steps))
        console.say(f"the model is the mean of the weights after steps {numbers}")
    elif best_step is not None and best_step != progress.step:
        load_weights(run, best_step, setup.model, setup.parallelism)
    return steps


def tune_on_validation(setup: Setup) -> None:
    """Let the task learn from the validation rows once the model is chosen, such as thresholds."""
    task, encoded = setup.task, setup.prepared.encoded
    if not task.problem.tunes(task.recipe, task.facts) or "validation" not in encoded:
        return
    forward = _forward(setup, task)
    records = list(forward.predictions(encoded["validation"]))
    learned = task.problem.tune(task.facts, records) if setup.parallelism.is_first else {}
    task.facts |= setup.parallelism.first_rank_says(learned)


def save(setup: Setup, run: Run) -> None:
    """Save the model, and prove that a fresh load computes the same."""
    if setup.parallelism.is_first:
        model = setup.model
        with atomic_directory(run.model) as folder:
            save_model(model, setup.task, folder)
        prove_reload(model, setup, run)
    setup.parallelism.wait()


def prove_reload(model: Any, setup: Setup, run: Run) -> None:
    """Compare the saved model with the trained one on a few rows.

    Raises:
        ModelError: they compute something else.
    """
    task, encoded = setup.task, setup.prepared.encoded
    split = encoded["validation" if "validation" in encoded else "train"]
    # few pieces: with a large vocabulary their logits could take more memory than training does
    pieces = flat([split.example(i) for i in range(min(4, len(split)))])[:4]
    batch = task.collate([[piece] for piece in pieces])
    free_cached_memory()
    fresh = load_trained(find_model(str(run.model)), task)
    was_training = model.training
    model.eval()
    autocast_forward = model.__dict__.pop("forward", None)  # Accelerate's, in half precision
    difference, is_same = _compare(model, fresh, task, batch)
    if autocast_forward is not None:
        model.forward = autocast_forward
    model.train(was_training)
    if not is_same:
        raise ModelError(
            f"the saved model computes something else than the trained one (logits differ by {difference:.3g})",
            place=str(run.model),
            remedy="this is a fault of lmkit's, or of the model's code: please report it with recipe.yaml; the checkpoints are intact",
        )


def _compare(model: Any, fresh: Any, task: Task, batch: Batch) -> tuple[float, bool]:
    """Return the largest difference of logits, and whether logits and loss of two models are the same."""
    import torch

    with torch.inference_mode():
        # with few copies of the logits
        trained = task.logits(model, batch.to(_device(model)))[0].float().cpu()
        loaded = task.logits(fresh, batch.to(_device(fresh)))[0].float().cpu()
        largest = trained.abs().max().item() if trained.numel() else 0.0
        difference = trained.sub_(loaded).abs_().max().item() if trained.numel() else 0.0
        del trained, loaded
        # with a CRF, too
        loss = task.loss(model, batch.to(_device(model))).item()
        fresh_loss = task.loss(fresh, batch.to(_device(fresh))).item()
    tolerance = RELOAD_TOLERANCE
    has_same_loss = math.isclose(loss, fresh_loss, rel_tol=tolerance, abs_tol=tolerance)
    return difference, difference <= tolerance * max(1.0, largest) and has_same_loss


def _device(model: Any) -> Any:
    """Return the device that the model is on: a quantised base is loaded where it is computed."""
    return next(model.parameters()).device


def evaluate(setup: Setup, run: Run) -> Metrics | None:
    """Measure the final numbers on the validation split; the test split is ``lmkit eval``'s."""
    prepared = setup.prepared
    if "validation" not in prepared.encoded:
        return None
    task, rows = setup.task.problem.scorer(setup.task), prepared.splits.rows
    encoded = prepared.encoded["validation"]
    if task is not setup.task:
        encoded = encode(rows["validation"], task, tokenizer_hash(task.tokenizer))
    metrics = evaluate_split(
        _forward(setup, task),
        encoded,
        split="validation",
        options=setup.recipe.eval,
        folder=run.eval_folder("validation"),
        background=Background(rows["train"], run=run, data=provenance(prepared.splits)),
    )
    if metrics is not None:
        console.say(f"\nvalidation, {metrics.examples} examples:\n{metrics_table(metrics)}")
    return metrics


def _forward(setup: Setup, task: Task) -> Forward:
    budget = 2 * micro_batch_tokens(setup.recipe.hardware, setup.parallelism.device)
    return Forward(task, setup.model, setup.parallelism, budget)
