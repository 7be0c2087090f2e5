"""One training run from end to end: prepare, train, keep the best, save, prove the reload, evaluate."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.data.plan import Plan
from lmkit.data.splits import Splits, provenance
from lmkit.errors import ModelError, RecipeError, RunError, TrainingStopped, suggest
from lmkit.evaluation.evaluate import evaluate_split, finite, is_better, metrics_table, validate
from lmkit.models.build import Built, build_model, count_parameters, load_trained, save_model
from lmkit.models.packing import Packing, find_packing
from lmkit.models.source import ModelSource, find_model
from lmkit.models.tokenizer import tokenizer_hash
from lmkit.recipe.load import dump_recipe
from lmkit.recipe.schema import Recipe
from lmkit.run import Run, atomic_directory, command_line, git_commit, versions, write_json, write_text
from lmkit.tasks.base import Task
from lmkit.train import card
from lmkit.train.checkpoint import checkpoint_steps, drop_old, load_checkpoint, load_weights, save_checkpoint
from lmkit.train.device import build_accelerator, choose_precision, micro_batch_tokens, peak_memory_bytes
from lmkit.train.loop import Step, StepBatches, train_steps
from lmkit.train.optim import build_optimizer
from lmkit.train.prepare import Prepared, prepare

if TYPE_CHECKING:
    from accelerate import Accelerator

RELOAD_TOLERANCE = 1e-4  # largest difference of logits after a fresh load, fp32


class Interrupted(Exception):
    """A signal ended the run after a checkpoint; carries the exit status (130 or 143)."""

    def __init__(self, status: int):
        super().__init__(f"interrupted (exit status {status})")
        self.status = status


@dataclass
class Progress:
    """Where a run stands: what a checkpoint keeps beside weights and moments."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_value: float | None = None
    without_improvement: int = 0
    fingerprint: dict[str, Any] = field(default_factory=dict)


def fit(recipe: Recipe, splits: Splits, source: ModelSource | None, run: Run, *, resume: bool) -> dict[str, Any]:
    """Train what the recipe says into the run directory.

    Returns:
        A summary for ``--json``: run, steps, seconds, the metric that chose the model, validation metrics.

    Raises:
        LmkitError: a mistake of the user's. TrainingStopped: the loss is not finite. Interrupted: by a signal.
    """
    started = time.perf_counter()
    prepared = prepare(recipe, splits, source)
    task, train = prepared.task, recipe.train
    accelerator = build_accelerator(recipe.hardware, trackers=recipe.logging.to, folder=str(run.path))
    if accelerator.num_processes > 1:
        console.say(f"processes: {accelerator.num_processes}")
    built = build_model(recipe, task, source)
    packing = find_packing(built.model) if task.packs and recipe.hardware.packing == "auto" else None
    plan = Plan(len(prepared.encoded["train"]), train.batch_size, recipe.seed)
    total = total_steps(recipe, plan)
    metric = metric_of(recipe, task, "validation" in prepared.encoded)
    progress = Progress(fingerprint=fingerprint(recipe, prepared))
    manifest = _manifest(recipe, prepared, built, accelerator, packing, plan, total)
    if accelerator.is_main_process:
        if not (resume and run.recipe_file.is_file()):
            write_text(run.recipe_file, dump_recipe(recipe))
        if prepared.splits.rejected:
            write_text(run.rejects_file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in prepared.splits.rejected))
        write_json(run.manifest_file, manifest)
    _announce(manifest, total, metric)

    optimizer = build_optimizer(built.model, train)
    model, optimizer = accelerator.prepare(built.model, optimizer)
    if resume:
        progress = _resume(run, model, optimizer, progress)
    if accelerator.is_main_process:
        run.cut_log(progress.step)
    if recipe.logging.to:
        accelerator.init_trackers(recipe.name)
    _train(recipe, prepared, model, optimizer, accelerator, packing, plan, run, progress, total=total, metric=metric)

    if progress.best_step is not None and progress.best_step != progress.step:
        load_weights(run, progress.best_step, model)
    _save(model, task, run, prepared, accelerator)
    found = _evaluate(model, prepared, accelerator, run, recipe)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    manifest |= {
        "finished": _now(),
        "steps": progress.step,
        "best_step": progress.best_step,
        "tokens_seen": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "seconds_in_all": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    if accelerator.is_main_process:
        write_json(run.manifest_file, manifest)
        write_text(run.card_file, card.model_card(recipe, task, manifest, found))
    return {
        "run": str(run.path),
        "task": task.name,
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "selected_by": metric,
        "best_step": progress.best_step if progress.best_step is not None else progress.step,
        "validation": found,
    }


def total_steps(recipe: Recipe, plan: Plan) -> int:
    """Steps of the whole run: whichever of epochs and max_steps ends first; with max_minutes alone, more than will fit."""
    train = recipe.train
    epochs = train.epochs if train.epochs is not None or train.max_steps or train.max_minutes else 3.0
    limits = [train.max_steps, math.ceil(epochs * plan.steps_per_epoch) if epochs else None]
    given = [limit for limit in limits if limit is not None]
    return min(given) if given else 10**8


def metric_of(recipe: Recipe, task: Task, with_validation: bool) -> str | None:
    """The metric that chooses the checkpoint; None: the last one is kept."""
    chosen = recipe.train.select_best
    if chosen == "last" or (chosen is None and not with_validation):
        return None
    if not with_validation:
        raise RecipeError(
            "there is no validation data to choose by",
            place="train.select_best",
            remedy="give data.validation or data.validation_fraction, or select_best: last",
        )
    if chosen is not None and chosen not in task.metrics:
        raise RecipeError(
            f"{task.name} has no metric {chosen!r}", place="train.select_best", remedy=suggest(chosen, task.metrics)
        )
    return chosen or task.metrics[0]


def fingerprint(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run: all that is learned from, not how it is run."""
    harmless = {"name", "output", "hardware", "logging", "eval", "generation"}
    values = json.loads(recipe.model_dump_json(exclude=harmless))
    for key in ("epochs", "max_steps", "max_minutes", "early_stopping", "eval_every"):
        del values["train"][key]
    for key in ("train", "validation", "test"):
        del values["data"][key]  # the content counts, not the path
    data = {split: rows.fingerprint for split, rows in prepared.splits.rows.items()}
    return {"recipe": values, "data": data, "tokenizer": tokenizer_hash(prepared.task.tokenizer)}


def _resume(run: Run, model: Any, optimizer: Any, progress: Progress) -> Progress:
    steps = checkpoint_steps(run)
    if not steps:
        console.say("resume: no checkpoint yet, starting at step 0")
        return progress
    state = load_checkpoint(run, steps[-1], model, optimizer)
    if changed := _differences(state["fingerprint"], progress.fingerprint):
        raise RunError(
            f"this run was started with other {', '.join(changed)}",
            place=str(run.path),
            remedy="restore what it was, or start anew with --overwrite or another -o",
        )
    console.say(f"resume: going on from step {steps[-1]}")
    return Progress(**state)


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in old.keys() | new.keys():
        left, right = old.get(key), new.get(key)
        if left == right:
            continue
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differences(left, right, prefix if key == "recipe" and not prefix else f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}")
    return sorted(found)


def _train(
    recipe: Recipe,
    prepared: Prepared,
    model: Any,
    optimizer: Any,
    accelerator: Accelerator,
    packing: Packing | None,
    plan: Plan,
    run: Run,
    progress: Progress,
    *,
    total: int,
    metric: str | None,
) -> None:
    """The steps, and around them logging, evaluating, saving and stopping."""
    train, task = recipe.train, prepared.task
    budget = micro_batch_tokens(recipe.hardware, accelerator.device)
    batches = StepBatches(
        prepared.encoded["train"],
        plan,
        task,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
        budget=budget,
        packed=packing is not None,
    )
    eval_steps = max(1, round(train.eval_every * plan.steps_per_epoch)) if train.eval_every <= 1 else int(train.eval_every)
    checkpoint_steps_, checkpoint_seconds = checkpoint_interval(recipe)
    earlier, begun = progress.seconds, time.perf_counter()
    last_checkpoint = begun
    limit = train.max_minutes * 60 if train.max_minutes else None
    patience = train.early_stopping
    if (limit is not None and earlier >= limit) or (patience is not None and progress.without_improvement >= patience):
        return  # resumed after its end

    def share_done() -> float | None:
        return None if limit is None else min(1.0, (earlier + time.perf_counter() - begun) / limit)

    with (
        _signals() as received,
        console.progress_bar(total=total if total < 10**8 else None, what=task.name, initial=progress.step) as bar,
    ):
        pending: list[Step] = []
        steps = train_steps(
            model,
            optimizer,
            batches,
            task,
            accelerator,
            first=progress.step,
            total=total,
            packing=packing,
            workers=recipe.hardware.workers,
            share_done=share_done,
            asked_to_stop=lambda: bool(received),
        )
        logged_at, logged_tokens = time.perf_counter(), 0
        for step in steps:
            pending.append(step)
            progress.step = step.number
            progress.tokens += step.tokens * accelerator.num_processes
            logged_tokens += step.tokens * accelerator.num_processes
            progress.seconds = earlier + time.perf_counter() - begun
            out_of_time = step.share is not None and step.share >= 1
            last = step.number == total or step.interrupted or out_of_time
            evaluating = metric is not None and (step.number % eval_steps == 0 or last) and not step.interrupted
            now = time.perf_counter()
            saving = (
                last
                or (checkpoint_steps_ is not None and step.number % checkpoint_steps_ == 0)
                or (checkpoint_seconds is not None and _agreed(accelerator, now - last_checkpoint > checkpoint_seconds))
            )
            if last or evaluating or saving or step.number % recipe.logging.every == 0 or accelerator.device.type == "cpu":
                _check_finite(pending, batches, prepared, run, recipe)
            if step.number % recipe.logging.every == 0 or last:
                line = _log_line(pending, plan, logged_tokens / max(now - logged_at, 1e-9))
                bar.set_postfix_str(f"loss {line['loss']:.3f}, {line['tokens_per_second']:.0f} tokens/s", refresh=False)
                if accelerator.is_main_process:
                    run.append_log(line | {"seconds": round(progress.seconds, 3)})
                accelerator.log({key: value for key, value in line.items() if key != "step"}, step=step.number)
                pending, logged_at, logged_tokens = [], now, 0
            bar.update()
            if evaluating and metric is not None:
                value = validate(model, task, prepared.encoded["validation"], accelerator, metric=metric, budget=2 * budget)
                model.train()
                improved = is_better(metric, value, progress.best_value)
                if improved:
                    progress.best_step, progress.best_value, progress.without_improvement = step.number, value, 0
                else:
                    progress.without_improvement += 1
                if accelerator.is_main_process:
                    run.append_log(
                        {"step": step.number, "epoch": line_epoch(plan, step.number), f"validation_{metric}": finite(value)}
                    )
                accelerator.log({f"validation_{metric}": value}, step=step.number)
                if console.is_verbose() or improved:
                    console.say(f"step {step.number}: validation {metric} {value:.4f}{' (best so far)' if improved else ''}")
                saving = saving or improved
                if patience is not None and progress.without_improvement >= patience:
                    console.say(f"step {step.number}: no improvement in {patience} evaluations, stopping")
                    last = saving = True
                logged_at = time.perf_counter()
            if saving:
                progress.seconds = earlier + time.perf_counter() - begun
                if accelerator.is_main_process:
                    state = {key: value for key, value in vars(progress).items() if key != "step"}
                    save_checkpoint(run, step.number, model, optimizer, state)
                    drop_old(run, keep=recipe.hardware.keep_checkpoints, best=progress.best_step)
                accelerator.wait_for_everyone()
                last_checkpoint = time.perf_counter()
            if step.interrupted:
                raise Interrupted(128 + (received[0] if received else signal.SIGINT))
            if last:
                return


def _agreed(accelerator: Accelerator, mine: bool) -> bool:
    """The first rank's answer, on every rank."""
    if accelerator.num_processes == 1:
        return mine
    from accelerate.utils import broadcast_object_list

    answer = [mine]
    broadcast_object_list(answer)
    return bool(answer[0])


def checkpoint_interval(recipe: Recipe) -> tuple[int | None, float | None]:
    """(steps, seconds), one or none of them.

    Raises:
        RecipeError: neither a number of steps nor minutes like "10min".
    """
    every = recipe.hardware.checkpoint_every
    if every is None or isinstance(every, int):
        return every, None
    if every.endswith("min"):
        try:
            return None, float(every.removesuffix("min")) * 60
        except ValueError:
            pass
    raise RecipeError(
        f"{every!r} is neither a number of steps nor minutes",
        place="hardware.checkpoint_every",
        remedy='for example 500, or "10min"',
    )


def line_epoch(plan: Plan, step: int) -> float:
    return round(step / plan.steps_per_epoch, 4)


def _log_line(steps: list[Step], plan: Plan, speed: float) -> dict[str, Any]:
    last = steps[-1]
    items = sum(step.items for step in steps)
    slots = sum(step.slots for step in steps)
    return {
        "step": last.number,
        "epoch": line_epoch(plan, last.number),
        "loss": sum(step.loss.item() * step.items for step in steps) / max(items, 1),
        "learning_rate": last.learning_rate,
        "grad_norm": last.grad_norm.item(),
        "tokens": sum(step.tokens for step in steps),
        "tokens_per_second": round(speed, 1),
        "padding": round(1 - sum(step.tokens for step in steps) / max(slots, 1), 4),
    }


def _check_finite(steps: list[Step], batches: StepBatches, prepared: Prepared, run: Run, recipe: Recipe) -> None:
    """Stop at the first step whose loss is not finite, and say which rows it was made of (promise 24).

    With fp16 a gradient that is not finite belongs to the search for the loss scale: that step is skipped.
    """
    fp16 = choose_precision(recipe.hardware) == "fp16"
    for step in steps:
        loss, norm = step.loss.item(), step.grad_norm.item()
        if math.isfinite(loss) and (fp16 or math.isfinite(norm)):
            continue
        encoded = prepared.encoded["train"]
        examples = batches.plan.examples(step.number - 1)
        rows = sorted({piece["row"] for example in examples for piece in encoded.example(int(example))})
        content = [{"place": encoded.rows.place(row), **encoded.rows[row]} for row in rows]
        listing = run.path / f"not-finite-step-{step.number}.jsonl"
        if console.is_first_process():
            write_text(listing, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content))
        last = checkpoint_steps(run)
        kept = f"the last good checkpoint is step {last[-1]}" if last else "there is no checkpoint yet"
        raise TrainingStopped(
            f"step {step.number}: the loss is not finite (loss {loss}, gradient norm {norm}); {kept}\n"
            f"  the {len(rows)} rows of that step are in {listing}; a lower train.learning_rate, or hardware.precision=fp32, often helps"
        )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the step in hand ends in a checkpoint; a second one acts at once."""
    received: list[int] = []
    try:
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, frame: Any) -> None:
            received.append(number)
            console.warn("stopping after this step with a checkpoint; once more to leave at once")
            for each, handler in before.items():
                signal.signal(each, handler)

        for number in before:
            signal.signal(number, note)
    except ValueError:  # not the main thread: signals are its business
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _save(model: Any, task: Task, run: Run, prepared: Prepared, accelerator: Accelerator) -> None:
    """Save the model and prove that a fresh load computes the same (promise 6)."""
    import torch

    if accelerator.is_main_process:
        inner = accelerator.unwrap_model(model)
        with atomic_directory(run.model) as folder:
            save_model(inner, task, folder)
        encoded = prepared.encoded["validation" if "validation" in prepared.encoded else "train"]
        batch = task.collate([encoded.example(i) for i in range(min(4, len(encoded)))])
        fresh = load_trained(find_model(str(run.model)), task)
        was_training = inner.training
        inner.eval()
        with torch.inference_mode():
            kept = task.logits(inner, {key: value.to(accelerator.device) for key, value in batch.items()})[0].float().cpu()
            loaded = task.logits(fresh, batch)[0].float()
        inner.train(was_training)
        difference = (kept - loaded).abs().max().item() if kept.numel() else 0.0
        if not difference <= RELOAD_TOLERANCE * max(1.0, kept.abs().max().item()):
            raise ModelError(
                f"the saved model computes something else than the trained one (logits differ by {difference:.3g})",
                place=str(run.model),
                remedy="this is a fault of lmkit's, or of the model's code: please report it with recipe.yaml; the checkpoints are intact",
            )
    accelerator.wait_for_everyone()


def _evaluate(model: Any, prepared: Prepared, accelerator: Accelerator, run: Run, recipe: Recipe) -> dict[str, Any]:
    """The final numbers on the validation split; the test split is ``lmkit eval``'s."""
    if "validation" not in prepared.encoded:
        return {}
    budget = 2 * micro_batch_tokens(recipe.hardware, accelerator.device)
    found = evaluate_split(
        model,
        prepared.task,
        prepared.encoded["validation"],
        accelerator,
        split="validation",
        options=recipe.eval,
        budget=budget,
        folder=run.eval_folder("validation"),
    )
    if found:
        console.say(f"\nvalidation, {found['examples']} examples:\n{metrics_table(found)}")
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _manifest(
    recipe: Recipe, prepared: Prepared, built: Built, accelerator: Accelerator, packing: Packing | None, plan: Plan, total: int
) -> dict[str, Any]:
    import os
    import platform

    import torch

    trained, parameters = count_parameters(built.model)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": command_line(),
        "started": _now(),
        "task": prepared.task.name,
        "seed": recipe.seed,
        "versions": versions(),
        "git_commit": git_commit(),
        "hardware": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "gpus": gpus,
            "device": str(accelerator.device),
            "processes": accelerator.num_processes,
            "precision": choose_precision(recipe.hardware),
            "threads": torch.get_num_threads(),
        },
        "data": provenance(prepared.splits),
        "examples": {split: len(encoded.rows) for split, encoded in prepared.encoded.items()},
        "rejected_rows": len(prepared.splits.rejected),
        "cut_rows": {split: encoded.cut for split, encoded in prepared.encoded.items()},
        "tokenizer": {"sha256": tokenizer_hash(prepared.task.tokenizer), "size": len(prepared.task.tokenizer)},
        "model": built.origin,
        "new_modules": built.new,
        "parent": str(prepared.source.run.resolve()) if prepared.source and prepared.source.run else None,
        "parameters": {"trained": trained, "total": parameters},
        "tokens_per_epoch": prepared.encoded["train"].tokens,
        "steps_per_epoch": plan.steps_per_epoch,
        "planned_steps": total if total < 10**8 else None,
        "packing": packing is not None,
    }


def _announce(manifest: dict[str, Any], total: int, metric: str | None) -> None:
    parameters, hardware = manifest["parameters"], manifest["hardware"]
    console.say(
        f"model: {manifest['model']}, {parameters['total'] / 1e6:.2f} M parameters"
        + (f", {parameters['trained'] / 1e6:.2f} M trained" if parameters["trained"] != parameters["total"] else "")
    )
    if manifest["new_modules"]:
        console.say(f"new, with random weights: {', '.join(manifest['new_modules'])}")
    steps = f"{total} steps" if total < 10**8 else "steps until the time is up"
    console.say(
        f"data: {manifest['examples'].get('train')} rows, {manifest['tokens_per_epoch']} tokens an epoch, {manifest['steps_per_epoch']} steps an epoch; {steps}"
        + f" on {hardware['device']} in {hardware['precision']}"
    )
    console.say(
        f"the checkpoint with the best validation {metric} becomes the model"
        if metric
        else "no validation data to choose by: the last checkpoint becomes the model"
    )
