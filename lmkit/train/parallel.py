"""Gradients of several processes become one gradient, and what they have to agree on.

DistributedDataParallel sums gradients while the backward pass runs, so a process whose memory ends there leaves
the others waiting for ever. Here every process first finishes its own pass; then all agree that none failed; then
the gradients are summed, in buckets. That also leaves parameters out that no process has a gradient for, as one
process alone would, and needs no second copy of all gradients. The price: the sum does not run beside the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

BUCKET_NUMBERS = 2**23  # summed at once: enough to fill the wire, few to copy


def prepare_parallel(accelerator: Accelerator, model: Any, *, sharded: bool = False) -> Any:
    """The model on the device, in the run's precision; every process with the first one's weights, whole or in parts."""
    if sharded:
        from lmkit.train.sharding import shard

        shard(model, accelerator)
    # evaluation mode, that is: without DistributedDataParallel
    model = accelerator.prepare_model(model, evaluation_mode=True, device_placement=not sharded)
    if accelerator.num_processes > 1 and not sharded:
        copy_from_first([*model.parameters(), *model.buffers()])
    return model


def copy_from_first(tensors: Sequence[torch.Tensor]) -> None:
    """Give every process the first one's numbers, in place."""
    with torch.no_grad():
        for tensor in tensors:
            torch.distributed.broadcast(tensor, 0)


def largest(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """The largest of each value over all processes."""
    if accelerator.num_processes == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.double, device=accelerator.device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    found: list[float] = tensor.tolist()
    return found


def sum_gradients(
    accelerator: Accelerator, parameters: Sequence[torch.nn.Parameter], *, present: Sequence[bool]
) -> None:
    """Replace each gradient by its sum over all processes; those of sharded parameters are sums already.

    Args:
        present: whether any process has a gradient for the parameter; the same on all of them.
    """
    if accelerator.num_processes == 1:
        return
    from lmkit.train.sharding import is_distributed

    if any(is_distributed(parameter) for parameter in parameters):
        for parameter, is_there in zip(parameters, present, strict=True):
            if not is_there:
                parameter.grad = None
        return
    chosen = [
        parameter for parameter, is_there in zip(parameters, present, strict=True) if is_there
    ]
    for parameter in chosen:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in chosen if parameter.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        torch.distributed.all_reduce(flat)
        for gradient, part in zip(
            bucket, torch.split(flat, [gradient.numel() for gradient in bucket]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours of one type, up to a number of numbers."""
    for _, alike in groupby(gradients, key=lambda gradient: (gradient.dtype, gradient.device)):
        bucket: list[torch.Tensor] = []
        size = 0
        for gradient in alike:
            if bucket and size + gradient.numel() > BUCKET_NUMBERS:
                yield bucket
                bucket, size = [], 0
            bucket.append(gradient)
            size += gradient.numel()
        yield bucket
