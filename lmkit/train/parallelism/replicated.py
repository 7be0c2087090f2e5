"""All weights on every process: gradients of several processes become one gradient.

DistributedDataParallel sums gradients while the backward pass runs, so a process whose memory ends there leaves
the others waiting for ever. Here every process first finishes its own pass; then all agree that none failed; then
the gradients are summed, in buckets. That also leaves parameters out that no process has a gradient for, as one
process alone would, and needs no second copy of all gradients. The price: the sum does not run beside the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from lmkit.batch import Batch
from lmkit.recipe.schema import Recipe
from lmkit.train.parallelism.base import Parameters, T

if TYPE_CHECKING:
    from accelerate import Accelerator

BUCKET_NUMBERS = 2**23  # summed at once: enough to fill the wire, few to copy


class Single:
    """One process with all weights."""

    computes_alone = True
    is_sharded = False

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def ranks(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def is_first(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def describe(self) -> str | None:
        return None

    def check(self, recipe: Recipe, model: Any) -> None:
        pass

    def check_repeatable(self, step: int, budget: int) -> None:
        pass

    def prepare(self, model: Any) -> Any:
        # evaluation mode, that is: without DistributedDataParallel
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def prepare_optimizer(self, optimizer: Any) -> Any:
        return self.accelerator.prepare_optimizer(optimizer)

    def autocast(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = self.accelerator.autocast()
        return context

    def whole(self, model: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def gather_model(self, model: Any, build: Callable[[], Any], *, on_device: bool) -> Any:
        return model

    def total(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def largest(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def any(self, mine: bool) -> bool:
        return self.largest([float(mine)])[0] > 0

    def first_rank_says(self, value: T) -> T:
        return value

    def gather(self, values: list[T]) -> list[T]:
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.accelerator.reduce(tensor, "sum")
        return total

    def track(self, values: Mapping[str, Any], *, step: int) -> None:
        self.accelerator.log(dict(values), step=step)

    def end(self) -> None:
        self.accelerator.end_training()

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)

    def same_number(self, micro: list[Batch], idle: Callable[[], Batch]) -> list[Batch]:
        return micro

    def gradients_present(self, parameters: Parameters) -> list[float]:
        return []

    def reduce(self, parameters: Parameters, present: Sequence[float]) -> None:
        pass

    def clip(self, optimizer: Any, parameters: Parameters, limit: float) -> torch.Tensor:
        """See the protocol. On a CPU AdamW's fused update scales the gradients, which saves a pass over all of them."""
        inner = optimizer.optimizer
        is_fused = type(inner) is torch.optim.AdamW and inner.defaults.get("fused")
        if self.device.type != "cpu" or not is_fused:
            return torch.as_tensor(self.accelerator.clip_grad_norm_(parameters, limit))
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm: torch.Tensor = torch.nn.utils.get_total_norm(gradients)
        excess = (norm.float() + 1e-6) / limit  # as torch.nn.utils.clip_grads_with_norm_
        inner.grad_scale = excess if excess > 1 else None  # what the update divides by
        return norm

    @property
    def saves(self) -> bool:
        return self.is_first

    def writing_group(self) -> Any:
        return None

    def keeps(self, tensor: Any) -> bool:
        return True

    def local(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def rows_of(self, parameter: Any) -> tuple[int, int] | None:
        return None

    def like(self, rows: torch.Tensor, parameter: Any) -> torch.Tensor:
        return rows


class Replicated(Single):
    """Several processes, each with all weights and a share of each step's rows."""

    def describe(self) -> str | None:
        return f"processes: {self.ranks}"

    def prepare(self, model: Any) -> Any:
        model = super().prepare(model)
        copy_from_first([*model.parameters(), *model.buffers()])
        return model

    def total(self, numbers: Sequence[float]) -> list[float]:
        tensor = torch.tensor(list(numbers), dtype=torch.double, device=self.device)
        sums: list[float] = self.accelerator.reduce(tensor, "sum").tolist()
        return sums

    def largest(self, numbers: Sequence[float]) -> list[float]:
        tensor = torch.tensor(list(numbers), dtype=torch.double, device=self.device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        values: list[float] = tensor.tolist()
        return values

    def first_rank_says(self, value: T) -> T:
        from accelerate.utils import broadcast_object_list

        answer = [value]
        broadcast_object_list(answer)
        return answer[0]

    def gather(self, values: list[T]) -> list[T]:
        from accelerate.utils import gather_object

        gathered: list[T] = gather_object(values)
        return gathered

    def gradients_present(self, parameters: Parameters) -> list[float]:
        return [float(parameter.grad is not None) for parameter in parameters]

    def reduce(self, parameters: Parameters, present: Sequence[float]) -> None:
        chosen = [p for p, is_there in zip(parameters, present, strict=True) if is_there]
        for parameter in chosen:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in chosen if parameter.grad is not None]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def copy_from_first(tensors: Sequence[torch.Tensor]) -> None:
    """Give every process the first one's numbers, in place."""
    with torch.no_grad():
        for tensor in tensors:
            torch.distributed.broadcast(tensor, 0)


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield neighbours of one type, up to a number of numbers."""
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
