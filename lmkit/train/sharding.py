"""Weights, gradients and optimizer state in parts, one for each process: torch's FSDP2 (Zhao et al. 2023).

An Accelerate configuration asks for it (``recipes/accelerate/fsdp.yaml``), and torch's ``fully_shard`` does it. Accelerate's
own preparation is left aside: on CPUs it never shards, so that nothing could be tested without several GPUs; and it computes
in rounded copies of all weights, norms and embeddings included, where autocast rounds for matrix products alone, so that a
sharded run would learn something else. Here a gathered layer is fp32, computes as in any other run, and is dropped again.

What the processes have to agree on: FSDP2 exchanges weights and gradients within every forward and backward pass, so each
process makes as many passes as the others, and memory that ends on one of them ends the run. Between passes ``gathered``
gives every process all weights, to be used as often as each likes: that is how validation computes.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lmkit.batch import Batch
from lmkit.errors import ModelError, RecipeError, TrainingStopped
from lmkit.heads import unwrap
from lmkit.models.layers import layer_of
from lmkit.models.memory import is_out_of_memory
from lmkit.recipe.schema import Recipe
from lmkit.train.device import choose_precision
from lmkit.train.parallel import copy_from_first, largest

if TYPE_CHECKING:
    from accelerate import Accelerator

WHERE = "the Accelerate configuration"


def check_sharding(recipe: Recipe, model: Any) -> None:
    """Refuse what does not go with parameters in parts (RecipeError)."""
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise RecipeError(
            f"sharding needs a newer torch than {torch.__version__}",
            place=WHERE,
            remedy="pip install -U torch",
        )
    chosen = recipe.train.optimizer
    if chosen in ("adafactor", "adamw8bit"):
        raise RecipeError(
            f"{chosen} does not go with {WHERE}, which shards: its state is not kept by rows",
            place="train.optimizer",
            remedy="adamw, muon or schedule_free",
        )
    if recipe.lora is not None and recipe.lora.quantize is not None:
        raise RecipeError(
            f"quantized weights do not go with {WHERE}, which shards",
            place="lora.quantize",
            remedy="null; or one GPU, unsharded",
        )
    if choose_precision(recipe.hardware) == "fp16":
        raise RecipeError(
            f"fp16 does not go with {WHERE}, which shards: each process would find a loss scale of its own",
            place="hardware.precision",
            remedy="bf16 or fp32",
        )
    for name, value in unwrap(model).config.to_dict().items():
        if "layerdrop" in name and isinstance(value, float) and value > 0:
            raise RecipeError(
                f"leaves out layers at random, other ones on each process, and {WHERE} shards them",
                place=f"model.config.{name}",
                remedy="0.0",
            )
    if scalars := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
        raise ModelError(
            f"{scalars[0]} is a single number, which cannot be sharded",
            place=WHERE,
            remedy="train unsharded",
        )


def shard(model: Any, accelerator: Accelerator) -> None:
    """Leave each process its rows of every parameter, in place: each layer a unit of its own, all the rest another.

    Only one unit at a time is whole on the device. Gradients will be summed over the processes, not averaged: the loss
    is divided by the labels of all of them already.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    warnings.filterwarnings(
        "ignore", message="FSDP2-wrapped module"
    )  # of outputs that are views: none is changed in place
    inner = unwrap(model)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    done: set[int] = set()
    for unit in [*_layers(inner), inner]:
        own = [tensor for tensor in [*unit.parameters(), *unit.buffers()] if id(tensor) not in done]
        for tensor in own:
            tensor.data = tensor.data.to(accelerator.device)
        copy_from_first(own)
        fully_shard(unit, mesh=mesh, reshard_after_forward=_drops(unit, inner))
        done.update(id(tensor) for tensor in [*unit.parameters(), *unit.buffers()])
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
        part.set_reduce_scatter_unused_params(
            True
        )  # a row of one word leaves a CRF's transitions without a gradient
    inner._get_fsdp_state()._lazy_init()  # now, since validation may come before the first training step
    parameters = dict(model.named_parameters())
    for part in _parts(model):
        part.unshard()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not is_distributed(parameter):
                parameter.register_hook(partial(_note, parameters[name]))
        part.reshard()


def _note(parameter: Any, gradient: torch.Tensor) -> None:
    parameter.has_own_gradient = True


def has_own_gradient(parameter: Any) -> bool:
    """Whether this process computed a gradient for a parameter; of a sharded one since it was last asked."""
    if not is_distributed(parameter):
        return parameter.grad is not None
    noted: bool = parameter.__dict__.pop("has_own_gradient", False)
    return noted


def _drops(unit: Any, model: Any) -> bool:
    """Whether a unit's weights are dropped between forward and backward; not those outside the layers: a CRF comes after."""
    return (
        unit is not model
        and os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    )


def _layers(model: Any) -> list[Any]:
    """The layers that share no parameter with anything else."""
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        layer = layer_of(name)
        owners.setdefault(id(parameter), set()).add(f"{layer[0]}.{layer[1]}" if layer else "")
    sharing = {name for names in owners.values() if len(names) > 1 for name in names}
    names = {name for each in owners.values() for name in each} - sharing - {""}
    modules = [model.get_submodule(name) for name in sorted(names)]
    return [
        module
        for module in modules
        if not isinstance(module, torch.nn.ModuleList | torch.nn.ModuleDict)
    ]


def is_sharded(model: Any) -> bool:
    return _is_unit(unwrap(model))


def is_distributed(tensor: Any) -> bool:
    """Whether a tensor is one of which each process has a part."""
    loaded = sys.modules.get(
        "torch.distributed.tensor"
    )  # which takes longer to import than a model: without it there is none
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def _is_unit(module: Any) -> bool:
    loaded = sys.modules.get("torch.distributed.fsdp")  # likewise
    return loaded is not None and isinstance(module, loaded.FSDPModule)


def _parts(model: Any) -> list[Any]:
    return [module for module in model.modules() if _is_unit(module)]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's rows, sharing their memory."""
    if not is_distributed(tensor):
        return tensor
    (placement,) = tensor.placements  # type: ignore[attr-defined]
    assert placement.is_shard(0), placement
    rows: torch.Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return rows


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that the processes have parts of; all of them have to ask for it."""
    if not is_distributed(tensor):
        return tensor
    found: torch.Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return found


def like(rows: torch.Tensor, parameter: Any) -> torch.Tensor:
    """These rows as the part of a tensor that is distributed as the parameter is."""
    from torch.distributed.tensor import DTensor

    made: torch.Tensor = DTensor.from_local(
        rows,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return made


def rows_of(parameter: Any) -> tuple[int, int] | None:
    """First and last-but-one row that this process has of a sharded parameter; None of one that it has whole."""
    if not is_distributed(parameter):
        return None
    total, share = parameter.shape[0], -(-parameter.shape[0] // parameter.device_mesh.size())
    first = min(parameter.device_mesh.get_local_rank() * share, total)
    last = min(first + share, total)
    assert local(parameter).shape[0] == last - first
    return first, last


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """While active every process has all weights, and may call the model without the others; nothing changes if unsharded.

    Raises:
        TrainingStopped: they do not fit.
    """
    parts = _parts(model)
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
    except RuntimeError as error:
        if not parts or not is_out_of_memory(error):
            raise
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        raise TrainingStopped(
            f"out of memory in validation, for which every process gathers all weights: {size:,} bytes\n"
            "  without validation data, or with train.select_best=last, only layers are gathered, one at a time"
        ) from None
    finally:
        for part in parts:
            part.set_reshard_after_forward(_drops(part, unwrap(model)), recurse=False)
            part.reshard()


def gather_into(plain: Any, model: Any) -> None:
    """Copy all weights and buffers into an unsharded model of the same kind; all processes have to take part."""
    targets = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            targets[name].copy_(whole(parameter))
        for (_, buffer), (_, found) in zip(
            plain.named_buffers(), model.named_buffers(), strict=True
        ):
            buffer.copy_(found)


def stopped_by_memory(step: int, budget: int) -> TrainingStopped:
    """What ends a sharded run whose memory ends: the others already wait for this process."""
    return TrainingStopped(
        f"step {step}: out of memory; sharded processes cannot repeat a step, since the others wait within it\n"
        f"  the same command with --resume hardware.micro_batch_tokens={max(1, budget // 2)} goes on from the last checkpoint"
    )


def as_many(accelerator: Accelerator, micro: list[Batch], idle: Callable[[], Batch]) -> list[Batch]:
    """The micro-batches of a step, filled up with idle ones to as many as any process has.

    Args:
        idle: makes a micro-batch in which nothing counts.
    """
    (most,) = largest(accelerator, [len(micro)])
    return [*micro, *(idle() for _ in range(int(most) - len(micro)))]
