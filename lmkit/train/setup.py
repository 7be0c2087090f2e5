"""Everything that a training step needs, made once, and the only forward and backward pass of training.

A step counts the labels that matter over all its micro-batches and all ranks, sums their losses and divides once, so that
neither the split into micro-batches nor the number of processes changes what is learned
[transformers#47688, #34191, #35078].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmkit import console
from lmkit.batch import Batch
from lmkit.data.encode import Encoded
from lmkit.data.plan import Plan
from lmkit.errors import TrainingStopped
from lmkit.models.build import build_model, count_parameters
from lmkit.models.memory import free_cached_memory, is_out_of_memory
from lmkit.models.padding import warn_of_padding
from lmkit.recipe.schema import Recipe
from lmkit.tasks.base import Task
from lmkit.train.averages import update_ema
from lmkit.train.batches import Rank, StepBatches
from lmkit.train.compiled import choose_compile, uncompiled
from lmkit.train.decisions import (
    ATTENTION,
    COMPILE,
    KERNELS,
    MICRO_BATCH,
    Decision,
    by_key,
    plain_decisions,
)
from lmkit.train.device import micro_batch_tokens
from lmkit.train.kernels import choose_attention, choose_kernels
from lmkit.train.micro_batch import choose_micro_batch
from lmkit.train.optim import build_optimizer, set_learning_rate
from lmkit.train.parallelism import start_processes
from lmkit.train.parallelism.base import Parallelism
from lmkit.train.plans import plan_of, total_steps
from lmkit.train.prepare import Prepared
from lmkit.train.spikes import Spikes

if TYPE_CHECKING:
    from lmkit.fast.packing import Packing
    from lmkit.fast.registry import FastPaths


@dataclass(frozen=True)
class Counts:
    """Sums over the micro-batches of a step and over all ranks.

    Args:
        items: labels that count. tokens, slots: tokens that are read, and places for them, padding included.
        stop: a rank was asked to stop.
        share: of ``train.max_minutes`` that was gone when the step began; None without.
    """

    items: int
    tokens: int
    slots: int
    stop: bool = False
    share: float | None = None


@dataclass(frozen=True)
class StepSums:
    """What a forward and backward pass over a step came to.

    Args:
        loss: mean over the labels that count, in nats, over all ranks; a tensor on the device.
    """

    loss: torch.Tensor
    counts: Counts


@dataclass(frozen=True)
class Update:
    """What one update did.

    Args:
        grad_norm: before clipping; a tensor on the device.
        is_spike: the norm was a spike (``train.on_spike``), and no weight was changed.
    """

    grad_norm: torch.Tensor
    is_spike: bool


@dataclass
class Computation:
    """How the passes of a model are computed faster; none of it changes what they compute.

    Args:
        is_fast: fast paths may be used (``hardware.fast``).
        packing: how several texts share a row; None: each has its own.
        is_compiled: the layers are compiled kernels.
        undo: makes the model again what it was, when it is closed.
    """

    is_fast: bool
    packing: Packing | None = None
    is_compiled: bool = False
    undo: ExitStack = field(default_factory=ExitStack)
    _paths: tuple[Packing | None, FastPaths] | None = field(default=None, init=False)

    @contextmanager
    def applied(self, model: Any, batch: Batch) -> Iterator[Batch]:
        """While active, a pass of the model on the batch that is given is computed so."""
        if not self.is_fast:
            yield batch
            return
        paths = self._paths_of(model, batch.labels.device)
        with paths.applied(model):
            yield paths.transform(batch)

    def _paths_of(self, model: Any, device: torch.device) -> FastPaths:
        """Choose the fast paths once for each way of packing, which a trial may change."""
        if self._paths is None or self._paths[0] is not self.packing:
            from lmkit.fast.registry import choose_for_training

            self._paths = self.packing, choose_for_training(model, device, self.packing)
        return self._paths[1]

    def for_evaluation(self) -> AbstractContextManager[Any]:
        """While active, compiled layers run as they were: an evaluation is short and would compile them once more."""
        return uncompiled() if self.is_compiled else nullcontext()


@dataclass
class Setup:
    """Everything that a training step needs. ``set_up`` makes it.

    Args:
        plan: which examples make each step. total: steps of the whole run.
        model, optimizer: on the device, spread over the processes.
        batches: the micro-batches of each step, and their budget of tokens.
        decisions: what was tried, by the recipe's key.
        origin: where the weights come from, for the manifest. new_modules: what no weights were loaded for.
        spikes: judges the gradient norms; a step whose norm is a spike changes no weight.
    """

    recipe: Recipe
    prepared: Prepared
    plan: Plan
    total: int
    parallelism: Parallelism
    model: Any
    optimizer: Any
    computation: Computation
    batches: StepBatches
    origin: str = ""
    new_modules: Sequence[str] = ()
    spikes: Spikes | None = None
    decisions: dict[str, Decision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.parameter_counts = count_parameters(self.model)

    @property
    def task(self) -> Task:
        return self.prepared.task

    @property
    def encoded(self) -> Encoded:
        return self.prepared.encoded["train"]

    def micro_batches(self, step: int) -> list[Batch]:
        """Return this rank's micro-batches of a step, counted from 0."""
        return self.batches[step]

    def count(
        self, micro: Sequence[Batch], *, stop: bool = False, share: float | None = None
    ) -> Counts:
        """Count a step's labels and tokens over all ranks; with them travel the wish to stop, and the first rank's time."""
        mine = [
            round(sum(batch.items for batch in micro)),
            sum(batch.tokens for batch in micro),
            sum(batch.slots for batch in micro),
            float(stop),
            share if share is not None and self.parallelism.is_first else 0.0,
        ]
        *sums, stops, first_share = self.parallelism.total(mine)
        items, tokens, slots = (round(number) for number in sums)
        return Counts(items, tokens, slots, stops > 0, None if share is None else first_share)

    def backward(
        self, step: int, micro: list[Batch] | None = None, counts: Counts | None = None
    ) -> StepSums:
        """Compute the gradients of the mean loss over all ranks' labels.

        Where memory ends, on whatever rank, all ranks drop the gradients and repeat the step in smaller micro-batches;
        ``batches.budget`` stays at what was found.

        Args:
            step: counted from 0.
            micro, counts: of this step, where they are there already.

        Raises:
            TrainingStopped: there is no memory for a single example.
        """
        micro = self.micro_batches(step) if micro is None else micro
        counts = self.count(micro) if counts is None else counts
        micro = self.parallelism.same_number(micro, partial(self.batches.idle, step))
        while (loss := self._try(step, micro, counts.items)) is None:
            micro = self.micro_batches(step)
        return StepSums(self.parallelism.sum(loss) / max(counts.items, 1), counts)

    def accumulate(self, micro: Sequence[Batch], items: float) -> torch.Tensor:
        """Run forward and backward over micro-batches, on this rank alone; return the sum of their losses.

        Args:
            items: labels that the losses are divided by.
        """
        loss_sum = torch.zeros((), device=self.parallelism.device, dtype=torch.double)
        for batch in micro:
            loss_sum += self._pass(batch, items)
        return loss_sum

    def update(self, step: int, rate: float) -> Update:
        """Clip the gradients and update the weights and their average; a spike is left out.

        Raises:
            TrainingStopped: there is no memory for the optimizer's state.
        """
        train = self.recipe.train
        set_learning_rate(self.optimizer, rate)
        limit = train.max_grad_norm if train.max_grad_norm is not None else float("inf")
        norm = self.parallelism.clip(self.optimizer, self.parameters, limit)
        is_spike = self.spikes is not None and self.spikes.judge(norm.item())
        if not is_spike:
            _change_weights(self.optimizer)
            if train.ema is not None:
                update_ema(self.optimizer, train.ema, step=step)
        elif self.optimizer.scaler is not None:
            self.optimizer.scaler.update()  # it has looked at these gradients
        self.optimizer.zero_grad(set_to_none=True)
        return Update(norm, is_spike)

    def decisions_now(self) -> dict[str, Decision]:
        """Return the decisions, with the size that the micro-batches have by now."""
        decisions = dict(self.decisions)
        if MICRO_BATCH in decisions:
            size = self.batches.budget
            decisions[MICRO_BATCH] = replace(decisions[MICRO_BATCH], chosen=size)
        return decisions

    def end_training(self) -> None:
        """Drop the optimizer, and bring the model into one piece on every process."""
        self.optimizer, self.parameters = None, []
        recipe, prepared = self.recipe, self.prepared
        self.model = self.parallelism.gather_model(
            self.model,
            lambda: build_model(recipe, prepared.task, prepared.source).model,
            on_device="validation" in prepared.encoded,  # where it is evaluated
        )

    def drop_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _pass(self, batch: Batch, items: float) -> torch.Tensor:
        batch = batch.to(self.parallelism.device, non_blocking=True)
        with self.computation.applied(self.model, batch) as given:
            loss = self.task.loss(self.model, given)
            self.parallelism.backward(loss / max(items, 1))
        return loss.detach()

    def _try(self, step: int, micro: Sequence[Batch], items: int) -> torch.Tensor | None:
        """Compute the gradients of a step; None: memory ended somewhere, and the micro-batches became smaller."""
        # dropout is keyed on the step and the rank, so a resumed or repeated step draws what the first try drew
        torch.manual_seed(_dropout_key(self.recipe.seed, step, self.parallelism.rank))
        loss, divisible = None, 0
        try:
            loss = self.accumulate(micro, items)
        except RuntimeError as error:
            if "without overflow" in str(
                error
            ):  # a mask with a number that only fp32 has (DeBERTa v1)
                raise TrainingStopped(
                    f"{self.model.config.model_type} cannot be computed in half precision: {error}\n  hardware.precision=fp32"
                ) from None
            if not is_out_of_memory(error):
                raise
            self.parallelism.check_repeatable(step + 1, self.batches.budget)
            divisible = self.batches.largest(step)
        is_out = loss is None
        mine = [float(is_out), float(is_out and not divisible), divisible]
        present = self.parallelism.gradients_present(self.parameters)
        out, stuck, divisible_anywhere, *present = self.parallelism.largest([*mine, *present])
        if not out:
            self.parallelism.reduce(self.parameters, present)
            return loss
        self.drop_gradients()
        free_cached_memory()
        self._halve(step, int(divisible_anywhere), stuck=bool(stuck))
        return None

    def _halve(self, step: int, divisible: int, *, stuck: bool) -> None:
        if stuck:
            raise TrainingStopped(
                f"step {step + 1}: out of memory, with one example in each micro-batch\n"
                "  hardware.gradient_checkpointing=true, a smaller data.max_length, lora, or train.optimizer=adafactor need less"
            )
        self.batches.budget = max(1, min(self.batches.budget, divisible) // 2)
        console.warn(
            f"step {step + 1}: out of memory; the step is repeated in micro-batches of {self.batches.budget} tokens"
        )


def set_up(recipe: Recipe, prepared: Prepared, *, folder: str | None = None) -> Setup:
    """Make everything that a training step needs, with the weights of the start.

    Args:
        folder: where trackers write; None: nothing is tracked.

    Raises:
        RecipeError, ModelError: the model, the optimizer or the processes are not what the recipe asks for.
    """
    trackers = recipe.logging.to if folder is not None else None
    parallelism = start_processes(recipe.hardware, trackers=trackers, folder=folder)
    built = build_model(recipe, prepared.task, prepared.source)
    parallelism.check(recipe, built.model)
    packing = _packing_of(recipe, prepared.task, built.model)
    encoded = prepared.encoded["train"]
    plan = plan_of(recipe, encoded)
    model = parallelism.prepare(built.model)
    return Setup(
        recipe=recipe,
        prepared=prepared,
        plan=plan,
        total=total_steps(recipe, plan),
        parallelism=parallelism,
        model=model,
        optimizer=parallelism.prepare_optimizer(_optimizer_of(recipe, model)),
        computation=Computation(recipe.hardware.fast != "off", packing),
        batches=StepBatches(
            encoded,
            plan,
            prepared.task,
            rank=Rank(parallelism.rank, parallelism.ranks),
            budget=micro_batch_tokens(recipe.hardware, parallelism.device),
            packed=packing is not None,
        ),
        origin=built.origin,
        new_modules=built.new,
        spikes=Spikes(recipe.train, []) if recipe.train.on_spike is not None else None,
    )


def _packing_of(recipe: Recipe, task: Task, model: Any) -> Packing | None:
    """Find how the model takes several texts in a row; without fast paths no file of theirs is even imported."""
    if recipe.hardware.fast == "off":
        warn_of_padding(model)
        return None
    from lmkit.fast.unpadding import choose_packing

    return choose_packing(recipe, task.problem, model)


def _optimizer_of(recipe: Recipe, model: Any) -> Any:
    return build_optimizer(
        model,
        recipe.train,
        lora_ratio=recipe.lora.learning_rate_ratio if recipe.lora else None,
        crf_rate=recipe.tagging.crf_learning_rate,
    )


def decide(setup: Setup, earlier: Mapping[str, Decision] | None = None) -> None:
    """Choose how the passes are computed: attention, kernels, and the size of the micro-batches.

    Weights stay as they are.

    Args:
        earlier: decisions of a checkpoint. One that was made for the same wish on the same device holds.

    Raises:
        RecipeError: the recipe, or the run so far, has something that cannot be used here.
    """
    setup.decisions = dict(earlier or {})
    if setup.computation.is_fast:
        setup.decisions[ATTENTION] = choose_attention(setup, setup.decisions)
        setup.decisions[KERNELS] = choose_kernels(setup, setup.decisions)
    else:
        setup.decisions |= by_key(plain_decisions(setup.recipe.hardware))
    setup.decisions[MICRO_BATCH] = choose_micro_batch(setup, setup.decisions)


def decide_compile(setup: Setup, *, first: int = 0, seconds: float | None = None) -> None:
    """Choose whether the layers are compiled; a trial may take a minute or two.

    Args:
        first: steps that are done. seconds: that ``train.max_minutes`` leaves; None without.

    Raises:
        RecipeError: the recipe says so, and they cannot be.
    """
    if setup.computation.is_fast:
        decision = choose_compile(setup, setup.decisions, first=first, seconds=seconds)
        setup.decisions[COMPILE] = decision


def _change_weights(optimizer: Any) -> None:
    """Update the weights; the first update also allocates the optimizer's state.

    Raises:
        TrainingStopped: there is no memory for it.
    """
    try:
        optimizer.step()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingStopped(
            f"out of memory in the update of {type(getattr(optimizer, 'optimizer', optimizer)).__name__}: weights, gradients and moments do not fit\n"
            "  lora, train.optimizer=adafactor, or a smaller model need less; the size of the micro-batches has no part in it"
        ) from None


def _dropout_key(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
