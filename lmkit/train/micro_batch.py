"""How many tokens one forward pass takes: what the recipe says, what an earlier part of the run found, or what is tried."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.batch import Batch
from lmkit.models.memory import free_cached_memory, is_out_of_memory
from lmkit.train.decisions import MICRO_BATCH, Decision
from lmkit.train.device import device_name, micro_batch_tokens, wait_for_device
from lmkit.train.optim import state_bytes

if TYPE_CHECKING:
    from lmkit.train.setup import Setup

SMALLEST = 2048  # tokens tried first
SHARDED = 4096  # tokens where no process can try sizes by itself
GAIN = 1.05  # a size twice as large has to be faster by this to be worth its memory
ROOM = 0.9  # share of the memory that a pass and the optimizer's state may take; the rest is for what varies


def choose_micro_batch(setup: Setup, earlier: Mapping[str, Decision]) -> Decision:
    """Choose the tokens of a micro-batch, the same on all ranks.

    Sizes are only tried on a GPU, and where a process can try by itself. On a CPU 4,096 tokens keep all cores busy, and
    larger passes only take more memory.

    Args:
        earlier: decisions of a checkpoint; still good for the same wish on the same device, so that a resumed run
            rounds as it did before, and does not run out of memory once more.
    """
    hardware, parallelism = setup.recipe.hardware, setup.parallelism
    made_for: dict[str, Any] = {
        "device": device_name(parallelism.device),
        "processes": parallelism.ranks,
    }
    asked = hardware.micro_batch_tokens
    decision = earlier.get(MICRO_BATCH)
    if decision is None or not decision.answers(asked, made_for):
        decision = Decision(MICRO_BATCH, asked, _tokens(setup), made_for=made_for)
        if asked == "auto":
            console.say(f"micro-batches: {decision.chosen} tokens")
    setup.batches.budget = decision.chosen
    return decision


def _tokens(setup: Setup) -> int:
    hardware, parallelism = setup.recipe.hardware, setup.parallelism
    if hardware.micro_batch_tokens != "auto":
        return hardware.micro_batch_tokens
    if not parallelism.computes_alone:
        return SHARDED
    if parallelism.device.type == "cuda":
        return -int(parallelism.largest([-try_sizes(setup)])[0])  # the smallest of all ranks
    return micro_batch_tokens(hardware, parallelism.device)


def try_sizes(setup: Setup) -> int:
    """Double the size until memory ends, a pass gets no faster by the token, or a whole step fits; on this rank alone.

    The longest examples are tried: no micro-batch of the run needs more. Weights stay as they are.
    """
    trained, _ = setup.parameter_counts
    needed = state_bytes(setup.recipe.train, trained)
    setup.model.train()
    best, best_speed, tokens = SMALLEST, 0.0, SMALLEST
    while True:
        examples = setup.batches.longest(tokens)
        try:
            # the first pass warms up
            speed = max(_speed(setup, setup.batches.collate(examples)) for _ in range(2))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            speed = 0.0
        setup.drop_gradients()
        is_full = _is_full(setup, needed)
        free_cached_memory()
        if speed <= best_speed * GAIN or (is_full and best_speed):
            return best
        best, best_speed = tokens, speed
        if is_full or len(examples) >= setup.batches.share:
            return best
        tokens *= 2


def _is_full(setup: Setup, needed: int) -> bool:
    """Return whether the last pass left too little of the GPU's memory for so many bytes."""
    if setup.parallelism.device.type != "cuda":
        return False
    import torch

    room = ROOM * torch.cuda.get_device_properties().total_memory
    is_full = torch.cuda.max_memory_allocated() + needed > room
    torch.cuda.reset_peak_memory_stats()
    return bool(is_full)


def _speed(setup: Setup, batch: Batch) -> float:
    """Return the tokens a second of a forward and backward pass."""
    begun = time.perf_counter()
    setup.accumulate([batch], batch.items)
    wait_for_device(setup.parallelism.device)
    return batch.tokens / (time.perf_counter() - begun)
