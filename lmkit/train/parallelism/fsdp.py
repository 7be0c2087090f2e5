"""Weights, gradients and optimizer state in parts, one for each process: torch's FSDP2 (Zhao et al. 2023).

An Accelerate configuration asks for it (``recipes/accelerate/fsdp.yaml``), and torch's ``fully_shard`` does it. Accelerate's
own preparation is left aside: on CPUs it never shards, so that nothing could be tested without several GPUs; and it computes
in rounded copies of all weights, norms and embeddings included, where autocast rounds for matrix products alone, so that a
sharded run would learn something else. Here a gathered layer is fp32, computes as in any other run, and is dropped again.

What the processes have to agree on: FSDP2 exchanges weights and gradients within every forward and backward pass, so each
process makes as many passes as the others, and memory that ends on one of them ends the run. Between passes ``whole``
gives every process all weights, to be used as often as each likes: that is how validation computes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from lmkit.batch import Batch
from lmkit.errors import ModelError, RecipeError, TrainingStopped
from lmkit.heads import unwrap
from lmkit.models.layers import layer_of
from lmkit.models.memory import is_out_of_memory
from lmkit.recipe.schema import Recipe
from lmkit.train.device import choose_precision
from lmkit.train.parallelism.base import Parameters
from lmkit.train.parallelism.replicated import Replicated, copy_from_first

WHERE = "the Accelerate configuration"
WAITED_HOURS = 6  # a process that has written its part of a checkpoint waits so long for the others


class FullySharded(Replicated):
    """Several processes, each with its rows of every weight, gradient and moment."""

    computes_alone = False
    is_sharded = True

    def describe(self) -> str | None:
        return f"processes: {self.ranks}, each with a part of the weights (FSDP2)"

    def check(self, recipe: Recipe, model: Any) -> None:
        check_sharding(recipe, model)

    def check_repeatable(self, step: int, budget: int) -> None:
        raise TrainingStopped(
            f"step {step}: out of memory; sharded processes cannot repeat a step, since the others wait within it\n"
            f"  the same command with --resume hardware.micro_batch_tokens={max(1, budget // 2)} goes on from the last checkpoint"
        )

    def prepare(self, model: Any) -> Any:
        self._shard(model)
        return self.accelerator.prepare_model(model, evaluation_mode=True, device_placement=False)

    @contextmanager
    def whole(self, model: Any) -> Iterator[None]:
        """See the protocol.

        Raises:
            TrainingStopped: the weights do not fit.
        """
        parts = _parts(model)
        try:
            for part in parts:
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size = sum(p.numel() * p.element_size() for p in model.parameters())
            raise TrainingStopped(
                f"out of memory in validation, for which every process gathers all weights: {size:,} bytes\n"
                "  without validation data, or with train.select_best=last, only layers are gathered, one at a time"
            ) from None
        finally:
            for part in parts:
                part.set_reshard_after_forward(_drops(part, unwrap(model)), recurse=False)
                part.reshard()

    def gather_model(self, model: Any, build: Callable[[], Any], *, on_device: bool) -> Any:
        plain = build()
        targets = dict(plain.named_parameters())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                targets[name].copy_(_whole(parameter))
            buffers = zip(plain.named_buffers(), model.named_buffers(), strict=True)
            for (_, buffer), (_, trained) in buffers:
                buffer.copy_(trained)
        self.accelerator.free_memory()
        return self.accelerator.prepare_model(
            plain, evaluation_mode=True, device_placement=on_device
        )

    def same_number(self, micro: list[Batch], idle: Callable[[], Batch]) -> list[Batch]:
        (most,) = self.largest([len(micro)])
        return [*micro, *(idle() for _ in range(int(most) - len(micro)))]

    def gradients_present(self, parameters: Parameters) -> list[float]:
        """See the protocol; since it was last asked."""
        return [float(_pop_note(parameter)) for parameter in parameters]

    def reduce(self, parameters: Parameters, present: Sequence[float]) -> None:
        """Leave the sums that FSDP2 made, and drop the gradients of parameters that no process has one for."""
        for parameter, is_there in zip(parameters, present, strict=True):
            if not is_there:
                parameter.grad = None

    def clip(self, optimizer: Any, parameters: Parameters, limit: float) -> torch.Tensor:
        return _whole(torch.as_tensor(self.accelerator.clip_grad_norm_(parameters, limit)))

    @property
    def saves(self) -> bool:
        return True

    def writing_group(self) -> Any:
        return torch.distributed.new_group(backend="gloo", timeout=timedelta(hours=WAITED_HOURS))

    def keeps(self, tensor: Any) -> bool:
        return self.is_first or self.rows_of(tensor) is not None

    def local(self, tensor: torch.Tensor) -> torch.Tensor:
        return _local(tensor)

    def rows_of(self, parameter: Any) -> tuple[int, int] | None:
        if not isinstance(parameter, DTensor):
            return None
        total, share = parameter.shape[0], -(-parameter.shape[0] // parameter.device_mesh.size())
        first = min(parameter.device_mesh.get_local_rank() * share, total)
        last = min(first + share, total)
        assert _local(parameter).shape[0] == last - first
        return first, last

    def like(self, rows: torch.Tensor, parameter: Any) -> torch.Tensor:
        return DTensor.from_local(
            rows,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )

    def _shard(self, model: Any) -> None:
        """Leave each process its rows of every parameter, in place: each layer a unit of its own, all the rest another.

        Only one unit at a time is whole on the device. Gradients will be summed over the processes, not averaged: the loss
        is divided by the labels of all of them already.
        """
        from torch.distributed.device_mesh import init_device_mesh

        # of outputs that are views: none is changed in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        inner = unwrap(model)
        mesh = init_device_mesh(self.device.type, (self.ranks,))
        done: set[int] = set()
        for unit in [*_layers(inner), inner]:
            tensors = [*unit.parameters(), *unit.buffers()]
            own = [tensor for tensor in tensors if id(tensor) not in done]
            for tensor in own:
                tensor.data = tensor.data.to(self.device)
            copy_from_first(own)
            fully_shard(unit, mesh=mesh, reshard_after_forward=_drops(unit, inner))
            done.update(id(tensor) for tensor in [*unit.parameters(), *unit.buffers()])
        for part in _parts(model):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
            # a row of one word leaves a CRF's transitions without a gradient
            part.set_reduce_scatter_unused_params(True)
        inner._get_fsdp_state()._lazy_init()  # now: validation may come before the first step
        _note_gradients(model)


def check_sharding(recipe: Recipe, model: Any) -> None:
    """Refuse settings that do not go with parameters in parts (RecipeError)."""
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


def _note_gradients(model: Any) -> None:
    """Have each parameter note when this process computes a gradient for it."""
    parameters = dict(model.named_parameters())
    for part in _parts(model):
        part.unshard()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.register_hook(partial(_note, parameters[name]))
        part.reshard()


def _note(parameter: Any, gradient: torch.Tensor) -> None:
    parameter.has_own_gradient = True


def _pop_note(parameter: Any) -> bool:
    if not isinstance(parameter, DTensor):
        return parameter.grad is not None
    noted: bool = parameter.__dict__.pop("has_own_gradient", False)
    return noted


def _drops(unit: Any, model: Any) -> bool:
    """Return whether a unit's weights are dropped between forward and backward.

    Those outside the layers are not: a CRF comes after.
    """
    asked = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    return unit is not model and asked != "false"


def _layers(model: Any) -> list[Any]:
    """Return the layers that share no parameter with anything else."""
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        layer = layer_of(name)
        owners.setdefault(id(parameter), set()).add(f"{layer[0]}.{layer[1]}" if layer else "")
    sharing: set[str] = {""}
    names: set[str] = set()
    for layers in owners.values():
        names |= layers
        if len(layers) > 1:
            sharing |= layers
    modules = [model.get_submodule(name) for name in sorted(names - sharing)]
    lists = (torch.nn.ModuleList, torch.nn.ModuleDict)
    return [module for module in modules if not isinstance(module, lists)]


def _parts(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    (placement,) = tensor.placements
    assert placement.is_shard(0), placement
    return tensor.to_local()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor that the processes have parts of; all of them have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
