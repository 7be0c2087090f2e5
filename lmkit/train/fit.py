"""One training run from end to end: prepare, train, keep the best, save, prove the reload, evaluate."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.batch import flat
from lmkit.data.encode import encode
from lmkit.data.plan import Plan
from lmkit.data.splits import Splits, cache_folder, provenance
from lmkit.errors import ModelError, RecipeError, RunError
from lmkit.evaluation.analysis import Background
from lmkit.evaluation.evaluate import evaluate_split, metrics_table
from lmkit.evaluation.forward import Forward
from lmkit.fast.unpadding import choose_packing
from lmkit.models.build import build_model, load_trained, save_model
from lmkit.models.memory import free_cached_memory
from lmkit.models.source import ModelSource, find_model
from lmkit.models.tokenizer import tokenizer_hash
from lmkit.recipe.load import dump_recipe, load_recipe
from lmkit.recipe.schema import Recipe
from lmkit.records import Metrics
from lmkit.run import Run, atomic_directory, write_json, write_rejects, write_text
from lmkit.tasks.base import Task
from lmkit.train import card
from lmkit.train.averages import use_average, use_trained
from lmkit.train.checkpoint import (
    average_weights,
    averaged,
    checkpoint_steps,
    load_checkpoint,
    load_state,
    load_weights,
    newest_whole,
)
from lmkit.train.device import (
    asks_to_shard,
    build_accelerator,
    micro_batch_tokens,
    peak_memory_bytes,
)
from lmkit.train.kernels import choose_attention, choose_kernels
from lmkit.train.manifest import announce, now, start_manifest
from lmkit.train.optim import build_optimizer, set_group_values
from lmkit.train.parallel import prepare_parallel
from lmkit.train.plans import evaluation_interval, metric_of, plan_of, total_steps
from lmkit.train.prepare import Prepared, prepare
from lmkit.train.session import Progress, run_steps
from lmkit.train.sharding import check_sharding, gather_into
from lmkit.train.summary import TrainingSummary

if TYPE_CHECKING:
    from accelerate import Accelerator

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
    task, train = prepared.task, recipe.train
    progress = Progress(fingerprint=fingerprint(recipe, prepared))
    newest = newest_whole(run) if resume else None
    if newest is not None:
        _refuse_another(run, newest, progress.fingerprint)
    accelerator = build_accelerator(
        recipe.hardware, trackers=recipe.logging.to, folder=str(run.path)
    )
    sharded = asks_to_shard() and accelerator.num_processes > 1
    if accelerator.num_processes > 1:
        parts = ", each with a part of the weights (FSDP2)" if sharded else ""
        console.say(f"processes: {accelerator.num_processes}{parts}")
    built = build_model(recipe, task, source)
    if sharded:
        check_sharding(recipe, built.model)
    packing = choose_packing(recipe, task.problem, built.model)
    plan = plan_of(recipe, prepared.encoded["train"])
    total = total_steps(recipe, plan)
    metric = metric_of(recipe, task.facts, "validation" in prepared.encoded)
    manifest = start_manifest(
        recipe,
        prepared,
        built,
        accelerator,
        packing,
        plan,
        total,
        sharded=sharded,
    )
    if accelerator.is_main_process:
        run.start(resume=resume, overwrite=overwrite)
        write_text(run.recipe_file, dump_recipe(recipe))  # resumed, too: it may have more steps now
        write_rejects(run.rejects_file, prepared.splits.rejected)
        write_json(run.manifest_file, manifest)
    announce(manifest, total, metric)

    model = prepare_parallel(accelerator, built.model, sharded=sharded)
    optimizer = build_optimizer(
        model,
        train,
        lora_ratio=recipe.lora.learning_rate_ratio if recipe.lora else None,
        crf_rate=recipe.tagging.crf_learning_rate,
    )
    optimizer = accelerator.prepare_optimizer(optimizer)
    if resume:
        progress = _resume(run, newest, model, optimizer, progress)
    if accelerator.is_main_process:
        run.cut_log(progress.step, progress.evaluated_step)
    if recipe.logging.to:
        accelerator.init_trackers(recipe.name)
    progress.attention, packing = choose_attention(
        recipe.hardware,
        model,
        accelerator,
        packing,
        progress.attention,
        longest=recipe.data.max_length,
    )
    progress.kernels, fused = choose_kernels(recipe.hardware, model, accelerator, progress.kernels)
    with fused:
        run_steps(
            recipe,
            prepared,
            model,
            optimizer,
            accelerator,
            packing,
            plan,
            run,
            progress,
            total=total,
            metric=metric,
        )
    use_average(optimizer)

    mean_of = _choose(run, recipe, plan, progress, model)
    del optimizer
    if sharded:
        model = _unsharded(model, prepared, recipe)
        del built
        accelerator.free_memory()
        # on the device only where it is evaluated there
        model = accelerator.prepare_model(
            model, evaluation_mode=True, device_placement="validation" in prepared.encoded
        )
    _tune(model, prepared, accelerator, recipe)
    _save(model, task, run, prepared, accelerator)
    metrics = _evaluate(model, prepared, accelerator, run, recipe)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    manifest |= {
        "finished": now(),
        "steps": progress.step,
        "best_step": progress.best_step,
        "averaged_steps": mean_of,
        "tokens_seen": progress.tokens,
        "micro_batch_tokens": progress.micro_batch.get("tokens"),
        "compiled": {key: progress.compiled.get(key) for key in ("on", "why")},
        "attention": {key: progress.attention.get(key) for key in ("on", "why")},
        "kernels": {key: progress.kernels.get(key) for key in ("on", "why")},
        "skipped_steps": progress.skipped,
        "seconds": round(progress.seconds, 3),
        "seconds_in_all": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    if accelerator.is_main_process:
        write_json(run.manifest_file, manifest)
        write_text(run.card_file, card.model_card(recipe, task, manifest, metrics))
    return TrainingSummary(
        run=str(run.path),
        task=task.name,
        steps=progress.step,
        tokens=progress.tokens,
        seconds=round(progress.seconds, 3),
        best_step=progress.best_step if progress.best_step is not None else progress.step,
        selected_by=metric,
        validation=metrics,
    )


def fingerprint(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run: all that is learned from, not how it is run."""
    data = {split: rows.fingerprint for split, rows in prepared.splits.rows.items()}
    return {
        "recipe": _learned_with(recipe),
        "data": data,
        "tokenizer": tokenizer_hash(prepared.task.tokenizer),
    }


def _learned_with(recipe: Recipe) -> dict[str, Any]:
    """The keys of a recipe that decide what is learned."""
    harmless = {"name", "seeds", "output", "hardware", "logging", "eval", "generation"}
    values: dict[str, Any] = json.loads(json.dumps(recipe.model_dump(exclude=harmless)))
    for key in (
        "epochs",
        "max_steps",
        "max_minutes",
        "early_stopping",
        "eval_every",
        "on_spike",
        "spike_factor",
    ):
        del values["train"][key]
    for key in ("train", "validation", "test", "folds", "fold"):
        del values["data"][key]  # the content counts, not the path
    return values


def _with_newer_keys(stored: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint of a checkpoint, with the defaults of keys that its version of lmkit did not have."""
    try:
        return stored | {"recipe": _learned_with(load_recipe(stored["recipe"]))}
    except RecipeError:  # keys that are no more, which will be named
        return stored


def _refuse_another(run: Run, step: int, now: dict[str, Any]) -> None:
    """Refuse to go on from the checkpoint of another recipe or of other data, naming the keys; before anything is written."""
    if changed := _differences(_with_newer_keys(load_state(run, step)["fingerprint"]), now):
        raise RunError(
            f"this run was started with other {', '.join(changed)}",
            place=str(run.path),
            remedy="restore what it was, or start anew with --overwrite or another -o",
        )


def _resume(run: Run, step: int | None, model: Any, optimizer: Any, progress: Progress) -> Progress:
    if step is None:
        console.say("resume: no checkpoint yet, starting at step 0")
        return progress
    state = load_checkpoint(run, step, model, optimizer)
    console.say(f"resume: going on from step {step}")
    progress = Progress(**state)
    set_group_values(optimizer, progress.groups)
    use_trained(optimizer)
    return progress


def _choose(run: Run, recipe: Recipe, plan: Plan, progress: Progress, model: Any) -> list[int]:
    """Give the model the best weights, or the mean of the last ones up to them; returns the steps of a mean."""
    every, number = evaluation_interval(recipe, plan), recipe.train.average_checkpoints
    steps = averaged(
        checkpoint_steps(run), number, every=every, last=progress.step, best=progress.best_step
    )
    if number and len(steps) < number:
        console.warn(
            f"train.average_checkpoints: {number}, but there were only {len(steps)} evaluations; train.eval_every makes more"
        )
    if steps:
        average_weights(run, steps, model)
        console.say(
            f"the model is the mean of the weights after steps {', '.join(map(str, steps))}"
        )
    elif progress.best_step is not None and progress.best_step != progress.step:
        load_weights(run, progress.best_step, model)
    return steps


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in old.keys() | new.keys():
        left, right = old.get(key), new.get(key)
        if left == right:
            continue
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differences(
                left, right, prefix if key == "recipe" and not prefix else f"{prefix}{key}."
            )
        else:
            found.append(f"{prefix}{key}")
    return sorted(found)


def _unsharded(sharded: Any, prepared: Prepared, recipe: Recipe) -> Any:
    """A plain model, on the CPU, with the weights that the processes have parts of."""
    plain = build_model(recipe, prepared.task, prepared.source).model
    gather_into(plain, sharded)
    return plain


def _tune(model: Any, prepared: Prepared, accelerator: Accelerator, recipe: Recipe) -> None:
    """What the task learns of the validation rows once the model is chosen, such as thresholds."""
    from accelerate.utils import broadcast_object_list

    task = prepared.task
    if not task.problem.tunes(task.recipe, task.facts) or "validation" not in prepared.encoded:
        return
    budget = 2 * micro_batch_tokens(recipe.hardware, accelerator.device)
    forward = Forward(prepared.task, model, accelerator, budget)
    records = list(forward.predictions(prepared.encoded["validation"]))
    learned = [task.problem.tune(task.facts, records) if accelerator.is_main_process else {}]
    if accelerator.num_processes > 1:
        broadcast_object_list(learned)
    prepared.task.facts |= learned[0]


def _save(model: Any, task: Task, run: Run, prepared: Prepared, accelerator: Accelerator) -> None:
    """Save the model and prove that a fresh load computes the same (promise 6)."""
    import torch

    if accelerator.is_main_process:
        inner = accelerator.unwrap_model(model)
        with atomic_directory(run.model) as folder:
            save_model(inner, task, folder)
        encoded = prepared.encoded["validation" if "validation" in prepared.encoded else "train"]
        # few pieces, and few copies of their logits: with a large vocabulary these could take more memory than training does
        pieces = flat([encoded.example(i) for i in range(min(4, len(encoded)))])[:4]
        batch = task.collate([[piece] for piece in pieces])
        free_cached_memory()
        fresh = load_trained(find_model(str(run.model)), task)
        was_training = inner.training
        inner.eval()
        autocast_forward = inner.__dict__.pop("forward", None)  # Accelerate's, in half precision
        with torch.inference_mode():
            kept, loaded = (
                task.logits(each, batch.to(_device(each)))[0].float().cpu()
                for each in (inner, fresh)
            )
            largest = kept.abs().max().item() if kept.numel() else 0.0
            difference = kept.sub_(loaded).abs_().max().item() if kept.numel() else 0.0
            del kept, loaded
            losses = [
                task.loss(each, batch.to(_device(each))).item() for each in (inner, fresh)
            ]  # with a CRF, too
        if autocast_forward is not None:
            inner.forward = autocast_forward
        inner.train(was_training)
        same_loss = math.isclose(*losses, rel_tol=RELOAD_TOLERANCE, abs_tol=RELOAD_TOLERANCE)
        if not (difference <= RELOAD_TOLERANCE * max(1.0, largest) and same_loss):
            raise ModelError(
                f"the saved model computes something else than the trained one (logits differ by {difference:.3g})",
                place=str(run.model),
                remedy="this is a fault of lmkit's, or of the model's code: please report it with recipe.yaml; the checkpoints are intact",
            )
    accelerator.wait_for_everyone()


def _device(model: Any) -> Any:
    """The device that the model is on: a quantised base is loaded where it is computed."""
    return next(model.parameters()).device


def _evaluate(
    model: Any, prepared: Prepared, accelerator: Accelerator, run: Run, recipe: Recipe
) -> Metrics | None:
    """The final numbers on the validation split; the test split is ``lmkit eval``'s."""
    if "validation" not in prepared.encoded:
        return None
    budget = 2 * micro_batch_tokens(recipe.hardware, accelerator.device)
    task, rows = prepared.task.problem.scorer(prepared.task), prepared.splits.rows
    encoded = prepared.encoded["validation"]
    if task is not prepared.task:
        encoded = encode(rows["validation"], task, tokenizer_hash(task.tokenizer))
    metrics = evaluate_split(
        Forward(task, model, accelerator, budget),
        encoded,
        split="validation",
        options=recipe.eval,
        folder=run.eval_folder("validation"),
        background=Background(rows["train"], run=run, data=provenance(prepared.splits)),
    )
    if metrics is not None:
        console.say(f"\nvalidation, {metrics.examples} examples:\n{metrics_table(metrics)}")
    return metrics
