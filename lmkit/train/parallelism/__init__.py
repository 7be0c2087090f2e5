"""How a model is spread over processes: one, several with all weights, or several with a part each."""

from __future__ import annotations

from lmkit.recipe.schema import Hardware
from lmkit.train.device import asks_to_shard, build_accelerator
from lmkit.train.parallelism.base import Parallelism


def start_processes(
    hardware: Hardware, *, trackers: list[str] | None = None, folder: str | None = None
) -> Parallelism:
    """Join the processes that were started, and spread the model as the Accelerate configuration asks.

    Args:
        trackers: names of Accelerate's trackers to log to.
        folder: where trackers write.

    Raises:
        RecipeError: another number of processes runs than the recipe asks for, or a tracker is missing.
    """
    from lmkit.train.parallelism.replicated import Replicated, Single

    accelerator = build_accelerator(hardware, trackers=trackers, folder=folder)
    if accelerator.num_processes == 1:
        return Single(accelerator)
    if asks_to_shard():
        from lmkit.train.parallelism.fsdp import FullySharded

        return FullySharded(accelerator)
    return Replicated(accelerator)
