"""The training loop: a generator of optimizer steps. Logging, evaluating and saving belong to the caller.

A step counts the labels that matter over all its micro-batches and all ranks, sums their losses and
divides once, so that neither the split into micro-batches nor the number of processes changes what is
learned [transformers#47688, #34191, #35078].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from lmkit import console
from lmkit.batch import Batch, flat
from lmkit.data.encode import Encoded
from lmkit.data.plan import Plan, deal, micro_batches, rows_to_share
from lmkit.errors import TrainingStopped
from lmkit.fast.packing import Packing
from lmkit.fast.registry import computed_faster
from lmkit.fast.unpadding import shared_rows
from lmkit.models.memory import free_cached_memory, is_out_of_memory
from lmkit.tasks.base import Task
from lmkit.train.averages import update_ema
from lmkit.train.device import share_of_cores
from lmkit.train.optim import clip_gradients, learning_rate, set_learning_rate
from lmkit.train.parallel import largest, sum_gradients
from lmkit.train.sharding import as_many, has_own_gradient, is_sharded, stopped_by_memory
from lmkit.train.spikes import Spikes

if TYPE_CHECKING:
    from accelerate import Accelerator

WATCHED_STEPS = 10  # after the first, which is slow for other reasons: whether hardware.workers: auto takes workers
WORTH_A_WORKER = 0.02  # share of the time


@dataclass(frozen=True)
class Step:
    """One optimizer update.

    Args:
        number: updates done, this one included.
        loss: mean over the labels that count, in nats, over all ranks; a tensor on the device.
        grad_norm: before clipping; a tensor on the device.
        items: labels that counted, over all ranks.
        tokens, slots: tokens that were read, and places of the micro-batches, padding included, over all ranks.
        waited_seconds: for this rank's micro-batches, which were not ready when the step before was done.
        share: of ``train.max_minutes`` that was gone when the step began; None without.
        interrupted: a rank was asked to stop.
        is_spike: the norm was a spike (``train.on_spike``), and no weight was changed.
    """

    number: int
    loss: torch.Tensor
    grad_norm: torch.Tensor
    learning_rate: float
    items: int
    tokens: int
    slots: int
    waited_seconds: float
    share: float | None
    interrupted: bool
    is_spike: bool = False


class StepBatches(torch.utils.data.Dataset[list[Batch]]):
    """Step number (from 0) -> the micro-batches of one rank. A pure function of the number, so it resumes anywhere."""

    def __init__(
        self,
        encoded: Encoded,
        plan: Plan,
        task: Task,
        *,
        rank: int,
        ranks: int,
        budget: int,
        packed: bool,
    ):
        self.encoded, self.plan, self.task = encoded, plan, task
        self.rank, self.ranks, self.budget, self.packed = rank, ranks, budget, packed
        self.slots = encoded.slots(packed=packed and task.problem.packs)
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, step: int) -> list[Batch]:
        epoch, examples = self._examples(step)
        mine = deal(examples, self.encoded.lengths, self.ranks)[self.rank]
        if not len(mine):  # fewer examples than ranks: take part in the step all the same
            return [self.idle(step)]
        return [self._collate(part, epoch) for part in self.cut(mine)]

    def _examples(self, step: int) -> tuple[int, np.ndarray]:
        """Epoch and examples of a step."""
        epoch, _ = self.plan.position(step)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self.plan.order(epoch))
        return epoch, self.plan.examples(step, self._order[1])

    def idle(self, step: int) -> Batch:
        """A small micro-batch of a step in which nothing counts."""
        epoch, examples = self._examples(step)
        return self._collate(examples[[self.slots[examples].argmin()]], epoch).idle()

    @property
    def share(self) -> int:
        """Examples of one rank in a step."""
        return -(-self.plan.batch_size // self.ranks)

    def longest(self, tokens: int) -> np.ndarray:
        """The longest examples that a micro-batch of so many tokens has room for; at least one, and no more than a step's."""
        order = np.argsort(-self.slots, kind="stable")
        return order[: max(1, min(tokens // int(self.slots[order[0]]), self.share))]

    def collate(self, examples: np.ndarray) -> Batch:
        return self._collate(examples, 0)

    def largest(self, step: int) -> int:
        """Tokens, padding included, of the largest micro-batch of a step that can still be divided; 0: there is none."""
        mine = deal(self.plan.examples(step), self.encoded.lengths, self.ranks)[self.rank]
        return max(
            (len(part) * int(self.slots[part].max()) for part in self.cut(mine) if len(part) > 1),
            default=0,
        )

    def cut(self, examples: np.ndarray, budget: int | None = None) -> list[np.ndarray]:
        """The micro-batches of these examples, with at most so many tokens where there are several examples; None: as in training."""
        return micro_batches(
            examples, self.slots, self.budget if budget is None else budget, padded=not self.packed
        )

    def _collate(self, examples: np.ndarray, epoch: int) -> Batch:
        pieces = self.encoded.examples(examples.tolist())
        batch = self.task.collate(pieces, epoch=epoch, packed=self.packed)
        if self.packed and not self.task.problem.packs:
            places = rows_to_share([piece["length"] for piece in flat(pieces)])
            if places is not None:
                batch.shared = torch.from_numpy(places)
        return batch


def train_steps(
    model: Any,
    optimizer: Any,
    batches: StepBatches,
    task: Task,
    accelerator: Accelerator,
    *,
    first: int,
    total: int,
    packing: Packing | None,
    workers: int | Literal["auto"],
    share_done: Callable[[], float | None],
    asked_to_stop: Callable[[], bool],
    spikes: Spikes | None = None,
) -> Iterator[Step]:
    """Run the optimizer steps ``first`` ... ``total`` - 1, yielding after each.

    Args:
        model, optimizer: prepared by Accelerate.
        share_done: the share of ``train.max_minutes`` that is gone, or None; the first rank's is used.
        asked_to_stop: whether this rank received a signal.
        spikes: judges the gradient norms; a step whose norm is a spike changes no weight.
    """
    train = task.recipe.train
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    limit = train.max_grad_norm if train.max_grad_norm is not None else float("inf")
    model.train()
    for step, micro, waited in _read(
        batches, first, total, workers=workers, pinned=accelerator.device.type == "cuda"
    ):
        share = share_done()
        counts = [
            round(sum(batch.items for batch in micro)),
            sum(batch.tokens for batch in micro),
            sum(batch.slots for batch in micro),
        ]
        (items, tokens, slots), stop, share = _agree(accelerator, counts, asked_to_stop(), share)
        rate = learning_rate(train, step=step, total=total, share=share)
        set_learning_rate(optimizer, rate)
        if is_sharded(model):
            micro = as_many(accelerator, micro, partial(batches.idle, step))
        loss_sum = _backward(
            model,
            parameters,
            batches,
            task,
            accelerator,
            packing,
            step=step,
            micro=micro,
            items=items,
        )
        grad_norm = clip_gradients(accelerator, optimizer, parameters, limit)
        is_spike = spikes is not None and spikes.judge(grad_norm.item())
        if is_spike:
            if optimizer.scaler is not None:
                optimizer.scaler.update()  # it has looked at these gradients
        else:
            _update(optimizer)
            if train.ema is not None:
                update_ema(optimizer, train.ema, step=step)
        optimizer.zero_grad(set_to_none=True)
        yield Step(
            number=step + 1,
            loss=accelerator.reduce(loss_sum, "sum") / max(items, 1),
            grad_norm=grad_norm,
            learning_rate=rate,
            items=items,
            tokens=tokens,
            slots=slots,
            waited_seconds=waited,
            share=share,
            interrupted=stop,
            is_spike=is_spike,
        )


def _alive(loader: torch.utils.data.DataLoader[list[Batch]]) -> Iterator[list[Batch]]:
    """What the loader gives, and where one of its worker processes dies a message instead of its traceback."""
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise TrainingStopped(
                f"a process that prepares batches died: {str(error).splitlines()[0].rstrip('. ')}\n"
                "  often the memory is full: fewer hardware.workers, or 0; --resume goes on from the last checkpoint"
            ) from None
        yield batch


def workers_for(waited: float, share: int) -> int:
    """Loader workers for ``hardware.workers: auto``, none where waiting is cheap or cores are few.

    Args:
        waited: share of the time that went into preparing batches, without workers.
        share: cores that there are for each process.
    """
    if share <= 2 or waited < WORTH_A_WORKER:
        return 0
    return (
        1 if waited < 0.5 else 2
    )  # one keeps up while preparing a step takes no longer than computing it


def _read(
    batches: StepBatches, first: int, total: int, *, workers: int | Literal["auto"], pinned: bool
) -> Iterator[tuple[int, list[Batch], float]]:
    """The micro-batches of each step, and the seconds it took until they were there.

    Workers read ahead; all is read anew once the budget or their number has changed.
    """
    step, number, watched = (
        first,
        0 if workers == "auto" else workers,
        range(first + 1, first + 1 + WATCHED_STEPS),
    )
    begun = waited = 0.0
    while step < total:
        budget = batches.budget
        loader = torch.utils.data.DataLoader(
            batches,
            batch_size=None,
            sampler=range(step, total),
            num_workers=number,
            pin_memory=pinned,
            collate_fn=_as_they_are,
        )
        asked = time.perf_counter()
        for micro in _alive(loader):
            took = time.perf_counter() - asked
            yield step, micro, took
            begun, waited = (asked, took) if step == watched.start else (begun, waited + took)
            step += 1
            asked = time.perf_counter()
            if workers == "auto" and step == watched.stop:
                number = workers_for(waited / (asked - begun), share_of_cores())
                if number:
                    console.say(
                        f"loader workers: {number}, for {waited / (asked - begun):.0%} of the time went into waiting for data"
                    )
                    break
            if batches.budget != budget:
                break


def _backward(
    model: Any,
    parameters: list[torch.nn.Parameter],
    batches: StepBatches,
    task: Task,
    accelerator: Accelerator,
    packing: Packing | None,
    *,
    step: int,
    micro: list[Batch],
    items: int,
) -> torch.Tensor:
    """Gradients of the mean loss over all ranks' labels; returns the sum of this rank's losses.

    Where memory ends, on whatever rank, all ranks drop the gradients and repeat the step in smaller micro-batches
    (promise 21); ``batches.budget`` stays at what was found.

    Raises:
        TrainingStopped: there is no memory for a single example.
    """
    while True:
        # dropout is keyed on the step and the rank, so a resumed or repeated step draws what the first try drew
        torch.manual_seed(_dropout_key(task.recipe.seed, step, accelerator.process_index))
        loss_sum = torch.zeros((), device=accelerator.device, dtype=torch.double)
        is_out, left = False, 0
        try:
            for batch in micro:
                batch = batch.to(accelerator.device, non_blocking=True)
                with (
                    shared_rows(model, packing, batch) as given,
                    computed_faster(model, accelerator.device),
                ):
                    loss = task.loss(model, given)
                    accelerator.backward(loss / max(items, 1))
                loss_sum += loss.detach()
        except RuntimeError as error:
            if "without overflow" in str(
                error
            ):  # code that masks with a number which only fp32 has (DeBERTa v1)
                raise TrainingStopped(
                    f"{model.config.model_type} cannot be computed in half precision: {error}\n  hardware.precision=fp32"
                ) from None
            if not is_out_of_memory(error):
                raise
            if is_sharded(model):
                raise stopped_by_memory(step + 1, batches.budget) from None
            is_out, left = True, batches.largest(step)
        is_stuck = is_out and not left
        has_gradient = [
            float(has_own_gradient(parameter))
            for parameter in parameters
            if accelerator.num_processes > 1
        ]
        out, stuck, divisible, *present = largest(
            accelerator, [float(is_out), float(is_stuck), left, *has_gradient]
        )
        if not out:
            sum_gradients(accelerator, parameters, present=[bool(there) for there in present])
            return loss_sum
        batch = loss = None  # type: ignore[assignment]  # they hold the memory
        for parameter in parameters:
            parameter.grad = None
        free_cached_memory()
        if stuck:
            raise TrainingStopped(
                f"step {step + 1}: out of memory, with one example in each micro-batch\n"
                "  hardware.gradient_checkpointing=true, a smaller data.max_length, lora, or train.optimizer=adafactor need less"
            )
        batches.budget = max(1, min(batches.budget, int(divisible)) // 2)
        console.warn(
            f"step {step + 1}: out of memory; the step is repeated in micro-batches of {batches.budget} tokens"
        )
        micro = batches[step]


def _update(optimizer: Any) -> None:
    """One update; the first one also allocates the optimizer's state.

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


def _as_they_are(micro: list[Batch]) -> list[Batch]:
    return micro


def _dropout_key(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _agree(
    accelerator: Accelerator, counts: list[int], stop: bool, share: float | None
) -> tuple[list[int], bool, float | None]:
    """Sums of the counts over all ranks, whether any rank was asked to stop, and the first rank's share of the time."""
    if accelerator.num_processes == 1:
        return counts, stop, share
    mine = [
        *map(float, counts),
        float(stop),
        share if share is not None and accelerator.is_main_process else 0.0,
    ]
    total: torch.Tensor = accelerator.reduce(
        torch.tensor(mine, dtype=torch.double, device=accelerator.device), "sum"
    )
    *sums, stops, first_share = total.tolist()
    return [round(count) for count in sums], stops > 0, None if share is None else first_share
