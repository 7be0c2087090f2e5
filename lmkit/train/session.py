"""The steps of a run, and around them logging, evaluating, saving and stopping."""

from __future__ import annotations

import json
import math
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.data.plan import Plan
from lmkit.errors import TrainingStopped
from lmkit.evaluation.evaluate import validate
from lmkit.evaluation.forward import Forward
from lmkit.fast.packing import Packing
from lmkit.metrics.direction import is_better
from lmkit.recipe.schema import Recipe
from lmkit.records import finite
from lmkit.run import Run, write_text
from lmkit.train.averages import averaged_weights
from lmkit.train.checkpoint import (
    averaged,
    checkpoint_steps,
    drop_old,
    drop_unfinished,
    set_aside_after,
)
from lmkit.train.compiled import choose_compile, uncompiled
from lmkit.train.device import choose_precision, micro_batch_tokens
from lmkit.train.loop import Step, StepBatches, train_steps
from lmkit.train.micro_batch import choose_micro_batch
from lmkit.train.optim import group_values
from lmkit.train.plans import UNLIMITED, checkpoint_interval, evaluation_interval
from lmkit.train.prepare import Prepared
from lmkit.train.sharding import gathered, is_sharded
from lmkit.train.signals import Interrupted, signals
from lmkit.train.spikes import Spikes
from lmkit.train.writer import Writer

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Progress:
    """Where a run stands: what a checkpoint keeps beside weights and moments."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_value: float | None = None
    without_improvement: int = 0
    evaluated_step: int = 0
    fingerprint: dict[str, Any] = field(default_factory=dict)
    micro_batch: dict[str, Any] = field(
        default_factory=dict
    )  # tokens, and what they were found for
    compiled: dict[str, Any] = field(
        default_factory=dict
    )  # whether the layers are, and what that was found for
    attention: dict[str, Any] = field(
        default_factory=dict
    )  # of shared rows, and what it was chosen for
    kernels: dict[str, Any] = field(default_factory=dict)  # of norms and gated layers, likewise
    groups: list[dict[str, float]] = field(
        default_factory=list
    )  # what the optimizer counts for each group
    norms: list[float] = field(default_factory=list)  # of the last gradients, for train.on_spike
    skipped: int = 0  # steps left out for a spike
    since_line: dict[str, Any] = field(
        default_factory=dict
    )  # the Tally of the steps that no line of the log tells of yet


@dataclass
class Tally:
    """What the steps since the last line of the log come to.

    A checkpoint keeps it, so that the next line of a resumed run tells of the same steps as the uninterrupted run's.

    Args:
        loss: summed over the labels, in nats; a tensor on the device once a step is in it.
        waited: seconds for data, of the first rank. seconds: of the steps of earlier processes.
    """

    loss: Any = 0.0
    items: int = 0
    tokens: int = 0
    slots: int = 0
    skipped: int = 0
    waited: float = 0.0
    seconds: float = 0.0

    def add(self, step: Step) -> None:
        self.loss = self.loss + step.loss * step.items
        self.items, self.tokens, self.slots = (
            self.items + step.items,
            self.tokens + step.tokens,
            self.slots + step.slots,
        )
        self.skipped, self.waited = self.skipped + step.is_spike, self.waited + step.waited_seconds

    def kept(self, seconds: float) -> dict[str, float]:
        """As plain numbers, ``seconds`` after the last line."""
        return vars(self) | {"loss": float(self.loss), "seconds": seconds}


def run_steps(
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
    batches = StepBatches(
        prepared.encoded["train"],
        plan,
        task,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
        budget=micro_batch_tokens(recipe.hardware, accelerator.device),
        packed=packing is not None,
    )
    progress.micro_batch = choose_micro_batch(
        recipe.hardware, train, model, batches, task, accelerator, packing, progress.micro_batch
    )
    batches.budget = progress.micro_batch["tokens"]
    spikes = Spikes(train, progress.norms) if train.on_spike is not None else None
    eval_steps = evaluation_interval(recipe, plan)
    save_steps, save_seconds = checkpoint_interval(recipe)
    earlier, begun = progress.seconds, time.perf_counter()
    last_checkpoint = begun
    limit = train.max_minutes * 60 if train.max_minutes else None
    patience = train.early_stopping
    sharded = is_sharded(model)
    writer = Writer(run, together=accelerator if sharded else None)
    if accelerator.is_main_process:
        drop_unfinished(run)
        set_aside_after(run, progress.step)
    second_best = progress.best_step, progress.best_value

    def evaluates(number: int, *, last: bool) -> bool:
        return metric is not None and (number % eval_steps == 0 or number == total or last)

    def evaluate() -> bool:
        """Validate, and note whether this step is the best so far."""
        nonlocal second_best
        assert metric is not None
        settle()
        eager = uncompiled() if progress.compiled.get("on") else nullcontext()
        with averaged_weights(optimizer), gathered(model), eager:
            forward = Forward(task, model, accelerator, 2 * batches.budget)
            value = validate(forward, prepared.encoded["validation"], metric=metric)
        model.train()
        progress.evaluated_step = progress.step
        improved = is_better(metric, value, progress.best_value)
        if improved:
            second_best = progress.best_step, progress.best_value
            progress.best_step, progress.best_value, progress.without_improvement = (
                progress.step,
                value,
                0,
            )
        else:
            progress.without_improvement += 1
        if accelerator.is_main_process:
            run.append_log(
                {
                    "step": progress.step,
                    "epoch": _epoch(plan, progress.step),
                    f"validation_{metric}": finite(value),
                }
            )
        accelerator.log({f"validation_{metric}": value}, step=progress.step)
        if console.is_verbose() or improved:
            console.say(
                f"step {progress.step}: validation {metric} {value:.4f}{' (best so far)' if improved else ''}"
            )
        return improved

    def settle() -> None:
        """Wait for the checkpoint that is being written; if the best step's found no room, the one before it is the best."""
        writer.wait()
        if _agreed(accelerator, progress.best_step in writer.lost):
            progress.best_step, progress.best_value = second_best

    def save() -> None:
        settle()
        if not (accelerator.is_main_process or sharded):
            return
        state = {key: value for key, value in vars(progress).items() if key != "step"}
        step, best, keep = progress.step, progress.best_step, recipe.hardware.keep_checkpoints

        def drop() -> None:
            drop_old(run, keep=keep, best=best, also=to_average(best))

        with averaged_weights(optimizer):
            writer.save(step, model, optimizer, state, drop)

    def end() -> None:
        """Every rank may read the checkpoints from here on."""
        settle()
        if _agreed(accelerator, progress.step in writer.lost):
            raise TrainingStopped(
                f"{run.checkpoints}: the disk is full, the last checkpoint (step {progress.step}) is not saved\n"
                "  make room there; the same command with --resume goes on from the checkpoint before"
            )
        accelerator.wait_for_everyone()

    def to_average(best_step: int | None) -> set[int]:
        """The checkpoints that the mean may still need: if the best one stays it, and if a later one becomes it."""
        steps, number = checkpoint_steps(run), train.average_checkpoints
        best, newest = (
            averaged(steps, number, every=eval_steps, last=total, best=at)
            for at in (best_step, total)
        )
        return {*best, *newest}

    def out_of_patience() -> bool:
        return patience is not None and progress.without_improvement >= patience

    was_out_of_time = limit is not None and earlier >= limit
    if progress.step > progress.evaluated_step and evaluates(progress.step, last=was_out_of_time):
        evaluate()  # a signal came before this evaluation
    if was_out_of_time or out_of_patience():
        return  # resumed after its end

    def share_done() -> float | None:
        return None if limit is None else min(1.0, (earlier + time.perf_counter() - begun) / limit)

    progress.compiled, layers = choose_compile(
        recipe.hardware,
        model,
        batches,
        task,
        accelerator,
        packing,
        progress.compiled,
        first=progress.step,
        total=total,
        seconds=None if limit is None else limit - earlier,
    )
    with (
        signals() as received,
        writer,
        layers,
        console.progress_bar(
            total=total if total < UNLIMITED else None, what=task.name, initial=progress.step
        ) as bar,
    ):
        unchecked: list[Step] = []
        tally = Tally(**progress.since_line)
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
            spikes=spikes,
        )
        logged_at = time.perf_counter() - tally.seconds
        for step in steps:
            unchecked.append(step)
            tally.add(step)
            progress.step = step.number
            progress.tokens += step.tokens
            if spikes is not None:
                progress.norms = spikes.norms
                progress.skipped += step.is_spike
                if step.is_spike:
                    _say_spike(step, spikes, batches, prepared, run, recipe, writer)
            out_of_time = step.share is not None and step.share >= 1
            ends = step.number == total or out_of_time
            last = ends or step.interrupted
            evaluating = evaluates(step.number, last=last) and not step.interrupted
            now = time.perf_counter()
            saving = (
                last
                or (train.average_checkpoints is not None and step.number % eval_steps == 0)
                or (save_steps is not None and step.number % save_steps == 0)
                or (
                    save_seconds is not None
                    and _agreed(accelerator, now - last_checkpoint > save_seconds)
                )
            )
            if (
                last
                or evaluating
                or saving
                or step.number % recipe.logging.every == 0
                or accelerator.device.type == "cpu"
            ):
                _check_finite(unchecked, batches, prepared, run, recipe, writer)
                unchecked = []
                now = (
                    time.perf_counter()
                )  # the losses were waited for: a device computes them after it was told to
            progress.seconds = earlier + now - begun
            if step.number % recipe.logging.every == 0 or ends:
                line = _log_line(step, tally, plan, seconds=max(now - logged_at, 1e-9))
                if spikes is not None:
                    line["skipped"] = tally.skipped
                bar.set_postfix_str(
                    f"loss {math.nan if line['loss'] is None else line['loss']:.3f}, {line['tokens_per_second']:.0f} tokens/s",
                    refresh=False,
                )
                if accelerator.is_main_process:
                    run.append_log(line | {"seconds": round(progress.seconds, 3)})
                accelerator.log(
                    {
                        key: value
                        for key, value in line.items()
                        if key != "step" and value is not None
                    },
                    step=step.number,
                )
                tally, logged_at = Tally(), now
            bar.update()
            if evaluating:
                saving = evaluate() or saving
                if out_of_patience():
                    console.say(
                        f"step {step.number}: no improvement in {patience} evaluations, stopping"
                    )
                    last = saving = True
                logged_at += time.perf_counter() - now  # the steps before it stay in the interval
            if saving:
                progress.seconds = earlier + time.perf_counter() - begun
                progress.micro_batch = progress.micro_batch | {"tokens": batches.budget}
                progress.groups = group_values(optimizer)
                progress.since_line = tally.kept(time.perf_counter() - logged_at)
                save()
                last_checkpoint = time.perf_counter()
            if last:
                end()
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


def _epoch(plan: Plan, step: int) -> float:
    return round(step / plan.steps_per_epoch, 4)


def _log_line(last: Step, tally: Tally, plan: Plan, *, seconds: float) -> dict[str, Any]:
    """What the steps since the last line come to, in so many seconds; ``data_wait`` is the first rank's share of them."""
    return {
        "step": last.number,
        "epoch": _epoch(plan, last.number),
        "loss": float(tally.loss) / tally.items
        if tally.items
        else None,  # nothing was masked: 0 would say all was known
        "learning_rate": last.learning_rate,
        "grad_norm": finite(last.grad_norm.item()),
        "tokens": tally.tokens,
        "tokens_per_second": round(tally.tokens / seconds, 1),
        "padding": round(1 - tally.tokens / max(tally.slots, 1), 4),
        "data_wait": round(tally.waited / seconds, 4),
    }


def _check_finite(
    steps: list[Step],
    batches: StepBatches,
    prepared: Prepared,
    run: Run,
    recipe: Recipe,
    writer: Writer,
) -> None:
    """Stop at the first step whose loss is not finite, and say which rows it was made of (promise 24).

    With fp16 a gradient that is not finite belongs to the search for the loss scale: that step is skipped.
    """
    precision = choose_precision(recipe.hardware)
    fp16, other = (
        precision == "fp16",
        "" if precision == "fp32" else ", or hardware.precision=fp32,",
    )
    for step in steps:
        loss, norm = step.loss.item(), step.grad_norm.item()
        if math.isfinite(loss) and (fp16 or math.isfinite(norm)):
            continue
        count, listing = _write_rows(step.number, "not-finite", batches, prepared, run)
        raise TrainingStopped(
            f"step {step.number}: the loss is not finite (loss {loss}, gradient norm {norm}); {_last_good(run, writer)}\n"
            f"  the {count} rows of that step are in {listing}; a lower train.learning_rate{other} often helps"
        )


def _say_spike(
    step: Step,
    spikes: Spikes,
    batches: StepBatches,
    prepared: Prepared,
    run: Run,
    recipe: Recipe,
    writer: Writer,
) -> None:
    """Say that a step was left out, or with ``train.on_spike: stop`` end the run."""
    found = f"step {step.number}: the gradient norm {step.grad_norm.item():.4g} is {step.grad_norm.item() / max(spikes.median, 1e-30):.0f} times the median of the last steps"
    if recipe.train.on_spike == "skip":
        console.warn(f"{found}; the step is left out")
        return
    count, listing = _write_rows(step.number, "spike", batches, prepared, run)
    raise TrainingStopped(
        f"{found} (loss {step.loss.item():.4g}); {_last_good(run, writer)}\n"
        f"  the {count} rows of that step are in {listing}; --resume with train.on_spike=skip leaves the step out"
    )


def _write_rows(
    number: int, why: str, batches: StepBatches, prepared: Prepared, run: Run
) -> tuple[int, Path]:
    """Write the rows of a step into the run directory; returns how many, and where."""
    encoded = prepared.encoded["train"]
    examples = batches.plan.examples(number - 1)
    rows = sorted({piece["row"] for example in examples for piece in encoded.example(int(example))})
    content = [{"place": encoded.rows.place(row), **encoded.rows[row]} for row in rows]
    listing = run.path / f"{why}-step-{number}.jsonl"
    if console.is_first_process():
        write_text(listing, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content))
    return len(rows), listing


def _last_good(run: Run, writer: Writer) -> str:
    writer.wait()
    last = checkpoint_steps(run)
    return f"the last good checkpoint is step {last[-1]}" if last else "there is no checkpoint yet"
