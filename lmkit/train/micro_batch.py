"""How many tokens one forward pass takes: what the recipe says, what an earlier part of the run found, or what is tried."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.batch import Batch
from lmkit.fast.packing import Packing
from lmkit.fast.registry import computed_faster
from lmkit.fast.unpadding import shared_rows
from lmkit.models.memory import free_cached_memory, is_out_of_memory
from lmkit.recipe.schema import Hardware, Train
from lmkit.tasks.base import Task
from lmkit.train.device import micro_batch_tokens
from lmkit.train.loop import StepBatches
from lmkit.train.optim import state_bytes
from lmkit.train.parallel import largest
from lmkit.train.sharding import is_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator

SMALLEST = 2048  # tokens tried first
SHARDED = 4096  # tokens of a sharded model's micro-batches
GAIN = 1.05  # a size twice as large has to be faster by this to be worth its memory
ROOM = 0.9  # share of the memory that a pass and the optimizer's state may take; the rest is for what varies


def choose_micro_batch(
    hardware: Hardware,
    train: Train,
    model: Any,
    batches: StepBatches,
    task: Task,
    accelerator: Accelerator,
    packing: Packing | None,
    known: dict[str, Any],
) -> dict[str, Any]:
    """Tokens of a micro-batch, under ``tokens``, beside what they were found for; the same on all ranks.

    Sizes are only tried on a GPU, and not on a sharded model, where no process can try by itself. On a CPU 4,096 tokens keep all cores busy, and larger passes only take more memory.

    Args:
        known: what a checkpoint kept; still good for the same wish on the same device, so that a resumed run
            rounds as it did before, and does not run out of memory once more.
    """
    wanted = {
        "asked": hardware.micro_batch_tokens,
        "device": _device(accelerator),
        "processes": accelerator.num_processes,
    }
    if {key: known.get(key) for key in wanted} == wanted:
        return known
    tokens = micro_batch_tokens(hardware, accelerator.device)
    if hardware.micro_batch_tokens == "auto":
        if is_sharded(model):
            tokens = SHARDED
        elif accelerator.device.type == "cuda":
            tokens = -int(
                largest(
                    accelerator, [-try_sizes(train, model, batches, task, accelerator, packing)]
                )[0]
            )  # the smallest
        console.say(f"micro-batches: {tokens} tokens")
    return wanted | {"tokens": tokens}


def _device(accelerator: Accelerator) -> str:
    import torch

    return (
        torch.cuda.get_device_name()
        if accelerator.device.type == "cuda"
        else accelerator.device.type
    )


def try_sizes(
    train: Train,
    model: Any,
    batches: StepBatches,
    task: Task,
    accelerator: Accelerator,
    packing: Packing | None,
) -> int:
    """Double the size until memory ends, a pass gets no faster by the token, or a whole step fits; on this rank alone.

    The longest examples are tried: no micro-batch of the run needs more. Weights stay as they are.
    """
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    needed = state_bytes(train, sum(parameter.numel() for parameter in parameters))
    model.train()
    best, best_speed, tokens = SMALLEST, 0.0, SMALLEST
    while True:
        examples = batches.longest(tokens)
        try:
            speed = max(
                _speed(model, task, accelerator, packing, batches.collate(examples))
                for _ in range(2)
            )  # one warms up
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            speed = 0.0
        for parameter in parameters:
            parameter.grad = None
        is_full = False
        if accelerator.device.type == "cuda":
            is_full = (
                torch.cuda.max_memory_allocated() + needed
                > ROOM * torch.cuda.get_device_properties().total_memory
            )
            torch.cuda.reset_peak_memory_stats()
        free_cached_memory()
        if speed <= best_speed * GAIN or (is_full and best_speed):
            return best
        best, best_speed = tokens, speed
        if is_full or len(examples) >= batches.share:
            return best
        tokens *= 2


def _speed(
    model: Any, task: Task, accelerator: Accelerator, packing: Packing | None, batch: Batch
) -> float:
    """Tokens a second, forward and backward."""
    begun = time.perf_counter()
    with (
        shared_rows(model, packing, batch.to(accelerator.device)) as given,
        computed_faster(model, accelerator.device),
    ):
        accelerator.backward(task.loss(model, given) / max(batch.items, 1))
    if accelerator.device.type == "cuda":
        import torch

        torch.cuda.synchronize()
    return batch.tokens / (time.perf_counter() - begun)
