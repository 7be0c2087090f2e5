"""The training loop: a generator of optimizer steps. Logging, evaluating and saving belong to the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from lmkit.train.batches import read_ahead
from lmkit.train.schedule import learning_rate
from lmkit.train.setup import Setup


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


def train_steps(
    setup: Setup,
    *,
    first: int = 0,
    share_done: Callable[[], float | None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Run the optimizer steps from ``first`` to the last one of the setup, yielding after each.

    Args:
        share_done: returns the share of ``train.max_minutes`` that is gone, or None; the first rank's is used.
        should_stop: returns whether this rank received a signal.
    """
    recipe, total = setup.recipe, setup.total
    is_pinned = setup.parallelism.device.type == "cuda"
    setup.model.train()
    for step, micro, waited in read_ahead(
        setup.batches, first, total, workers=recipe.hardware.workers, pinned=is_pinned
    ):
        share = share_done()
        counts = setup.count(micro, stop=should_stop(), share=share)
        rate = learning_rate(recipe.train, step=step, total=total, share=counts.share)
        sums = setup.backward(step, micro, counts)
        update = setup.update(step, rate)
        yield Step(
            number=step + 1,
            loss=sums.loss,
            grad_norm=update.grad_norm,
            learning_rate=rate,
            items=counts.items,
            tokens=counts.tokens,
            slots=counts.slots,
            waited_seconds=waited,
            share=counts.share,
            interrupted=counts.stop,
            is_spike=update.is_spike,
        )
