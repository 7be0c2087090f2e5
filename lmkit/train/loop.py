"""The training loop: a generator of optimizer steps. Logging, evaluating and saving belong to the caller.

A step counts the labels that matter over all its micro-batches and all ranks, sums their losses and
divides once, so that neither the split into micro-batches nor the number of processes changes what is
learned [transformers#47688, #34191, #35078].
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmkit.data.encode import Encoded
from lmkit.data.plan import Plan, deal, micro_batches
from lmkit.errors import TrainingStopped
from lmkit.models.packing import Packing
from lmkit.tasks.base import Batch, Task, uncounted
from lmkit.train.optim import learning_rate, set_learning_rate

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Step:
    """One optimizer update.

    Args:
        number: updates done, this one included.
        loss: mean over the labels that count, in nats, over all ranks; a tensor on the device.
        grad_norm: before clipping; a tensor on the device.
        items: labels that counted, over all ranks.
        tokens, slots: tokens that were read, and places of the micro-batches, padding included, over all ranks.
        share: of ``train.max_minutes`` that was gone when the step began; None without.
        interrupted: a rank was asked to stop.
    """

    number: int
    loss: torch.Tensor
    grad_norm: torch.Tensor
    learning_rate: float
    items: int
    tokens: int
    slots: int
    share: float | None
    interrupted: bool


class StepBatches(torch.utils.data.Dataset[list[Batch]]):
    """Step number (from 0) -> the micro-batches of one rank. A pure function of the number, so it resumes anywhere."""

    def __init__(self, encoded: Encoded, plan: Plan, task: Task, *, rank: int, ranks: int, budget: int, packed: bool):
        self.encoded, self.plan, self.task = encoded, plan, task
        self.rank, self.ranks, self.budget, self.packed = rank, ranks, budget, packed
        self._slots = encoded.slots(packed=packed)
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, step: int) -> list[Batch]:
        epoch, _ = self.plan.position(step)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self.plan.order(epoch))
        examples = self.plan.examples(step, self._order[1])
        mine = deal(examples, self.encoded.lengths, self.ranks)[self.rank]
        if not len(mine):  # fewer examples than ranks: take part in the step with nothing that counts
            batch = self._collate(examples[:1], epoch)
            batch["labels"] = uncounted(batch["labels"])
            return [batch | {"idle": torch.ones(())}]
        return [self._collate(part, epoch) for part in micro_batches(mine, self._slots, self.budget)]

    def _collate(self, examples: np.ndarray, epoch: int) -> Batch:
        return self.task.collate([self.encoded.example(int(i)) for i in examples], epoch=epoch, packed=self.packed)


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
    workers: int,
    share_done: Callable[[], float | None],
    asked_to_stop: Callable[[], bool],
) -> Iterator[Step]:
    """Run the optimizer steps ``first`` ... ``total`` - 1, yielding after each.

    Args:
        model, optimizer: prepared by Accelerate.
        share_done: the share of ``train.max_minutes`` that is gone, or None; the first rank's is used.
        asked_to_stop: whether this rank received a signal.
    """
    train = task.recipe.train
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loader = torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, total),
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=_as_they_are,
    )
    model.train()
    for step, micro in zip(range(first, total), _alive(loader), strict=True):
        # dropout is keyed on the step and the rank, so a resumed run draws what the uninterrupted one drew
        torch.manual_seed(_dropout_key(task.recipe.seed, step, accelerator.process_index))
        share = share_done()
        counts = [sum(count(batch) for batch in micro) for count in (task.items, _tokens, _slots)]
        (items, tokens, slots), stop, share = _agree(accelerator, counts, asked_to_stop(), share)
        rate = learning_rate(train, step=step, total=total, share=share)
        set_learning_rate(optimizer, rate)
        loss_sum = torch.zeros((), device=accelerator.device, dtype=torch.double)
        for number, batch in enumerate(micro):
            last = number + 1 == len(micro)
            batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()}
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                loss = task.loss(model, packing.apply(batch) if packing else batch)
                # DistributedDataParallel averages over ranks: undo that, then divide by all items once
                accelerator.backward(loss * (accelerator.num_processes / max(items, 1)))
            loss_sum += loss.detach()
        limit = train.max_grad_norm if train.max_grad_norm is not None else float("inf")
        grad_norm = accelerator.clip_grad_norm_(parameters, limit)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield Step(
            number=step + 1,
            loss=accelerator.reduce(loss_sum, "sum") / max(items, 1),
            grad_norm=torch.as_tensor(grad_norm),
            learning_rate=rate,
            items=items,
            tokens=tokens,
            slots=slots,
            share=share,
            interrupted=stop,
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


def _as_they_are(micro: list[Batch]) -> list[Batch]:
    return micro


def _dropout_key(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _tokens(batch: Batch) -> int:
    return 0 if "idle" in batch else int(batch["attention_mask"].sum())


def _slots(batch: Batch) -> int:
    return 0 if "idle" in batch else batch["attention_mask"].numel()


def _agree(accelerator: Accelerator, counts: list[int], stop: bool, share: float | None) -> tuple[list[int], bool, float | None]:
    """Sums of the counts over all ranks, whether any rank was asked to stop, and the first rank's share of the time."""
    if accelerator.num_processes == 1:
        return counts, stop, share
    mine = [*map(float, counts), float(stop), share if share is not None and accelerator.is_main_process else 0.0]
    total: torch.Tensor = accelerator.reduce(torch.tensor(mine, dtype=torch.double, device=accelerator.device), "sum")
    *sums, stops, first_share = total.tolist()
    return [int(count) for count in sums], stops > 0, None if share is None else first_share
