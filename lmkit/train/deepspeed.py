"""The optimizer's state, and with stage 2 the gradients, in parts, one for each process: DeepSpeed's ZeRO (Rajbhandari et al. 2020).

An Accelerate configuration asks for it (``recipes/accelerate/deepspeed.yaml``), and ``deepspeed.initialize`` does it with
lmkit's own optimizer. Accelerate's preparation is left aside: it divides losses by accumulation steps and gradients by
processes, and wants a data loader. Every process keeps all weights, so validation, prediction and saving are those of any run,
and a checkpoint is gathered by the first process: its files are those of one process, and serve any other number of them.

What the processes have to agree on: with stage 2 gradients are summed within every backward pass, so each process makes as
many passes as the others, each with a gradient for every parameter, and memory that ends on one of them ends the run.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Collection
from contextlib import redirect_stdout
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lmkit.batch import Batch
from lmkit.errors import RecipeError, TrainingStopped
from lmkit.heads import unwrap
from lmkit.recipe.schema import Recipe
from lmkit.tasks.base import Task
from lmkit.train.device import choose_precision

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

WHERE = "the Accelerate configuration"
TRIED = "0.19"  # the versions that pyproject.toml names: what is used here is not all public
INSTALL = "pip install 'lmkit[deepspeed]'"
BUCKET_NUMBERS = (
    2**25
)  # summed, and fetched, at once; DeepSpeed's own 5e8 would take 2 GB on each device


def check_deepspeed(recipe: Recipe, model: Any) -> None:
    """Refuse what does not go with ZeRO, or what nobody has shown to (RecipeError)."""
    train, fsdp = recipe.train, "recipes/accelerate/fsdp.yaml"
    config = unwrap(model).config.to_dict()
    dropped = [
        name
        for name, value in config.items()
        if "layerdrop" in name and isinstance(value, float) and value > 0
    ]
    problems = [
        (
            train.optimizer != "adamw",
            "train.optimizer",
            f"{train.optimizer} is not shared out by DeepSpeed",
            f"adamw; or {fsdp}",
        ),
        (
            train.ema is not None,
            "train.ema",
            "DeepSpeed keeps no averages of the weights",
            f"null; or {fsdp}",
        ),
        (
            train.on_spike is not None,
            "train.on_spike",
            "DeepSpeed finds the gradient norm within the update",
            f"null; or {fsdp}",
        ),
        (
            recipe.lora is not None and recipe.lora.quantize is not None,
            "lora.quantize",
            "not tried with DeepSpeed",
            "null",
        ),
        (
            recipe.tagging.crf,
            "tagging.crf",
            "rows of one word leave a CRF without gradients, which DeepSpeed waits for",
            fsdp,
        ),
        (
            choose_precision(recipe.hardware) == "fp16",
            "hardware.precision",
            "not tried with DeepSpeed",
            "bf16 or fp32",
        ),
        (
            recipe.hardware.compile == "on",
            "hardware.compile",
            "not tried with DeepSpeed",
            "off or auto",
        ),
        *(
            (
                True,
                f"model.config.{name}",
                "leaves out layers at random, whose gradients DeepSpeed waits for",
                "0.0",
            )
            for name in dropped
        ),
        *(
            (
                True,
                WHERE,
                f"{name} is a single number, which DeepSpeed does not distribute",
                "train unsharded",
            )
            for name, parameter in model.named_parameters()
            if parameter.ndim == 0
        ),
    ]
    for is_there, place, problem, remedy in problems:
        if is_there:
            raise RecipeError(f"{problem} ({WHERE} asks for it)", place=place, remedy=remedy)
    if importlib.util.find_spec("deepspeed") is None:
        raise RecipeError("deepspeed is not installed", place=WHERE, remedy=INSTALL)
    found = version("deepspeed")
    if found.split(".")[:2] != TRIED.split("."):
        raise RecipeError(
            f"this is deepspeed {found}, and lmkit is tried with {TRIED}",
            place=WHERE,
            remedy=INSTALL,
        )


def is_partitioned(model: Any) -> bool:
    """Whether DeepSpeed takes the gradients of this model out of its backward passes."""
    return any(hasattr(parameter, "_hp_mapping") for parameter in model.parameters())


class ZeroOptimizer:
    """A model's optimizer in parts: the passes that give it gradients, and the update.

    Args:
        model: on its device, with the first process's weights; it may be called as before wherever nothing is trained.
        optimizer: over all of its trained parameters; it will have flat parts of them.
        max_grad_norm: None: gradients are not clipped.

    Attributes:
        param_groups: the optimizer's, for learning rates.
        state: moments by parameter of the model, for checkpoints.
    """

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        task: Task,
        accelerator: Accelerator,
        *,
        stage: int,
        max_grad_norm: float | None,
    ):
        self._engine = _engine(
            _loss_of(model, task), optimizer, accelerator, stage=stage, max_grad_norm=max_grad_norm
        )
        self._model, self._optimizer, self._processes = model, optimizer, accelerator.num_processes
        self._parameters = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        self.state = _Moments(optimizer, self._parameters)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def backward(self, batch: Batch, *, items: int, last: bool) -> torch.Tensor:
        """Forward and backward pass of a micro-batch, whose summed loss is divided by all labels of the step; returns the sum.

        Args:
            last: of the step.

        Raises:
            TrainingStopped: a parameter had no part in it, and the other processes would wait for its gradient.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        loss: torch.Tensor = self._engine(batch)
        if missing := self._parameters.keys() - _reached(loss):
            names = sorted(self._parameters[each] for each in missing)
            raise TrainingStopped(
                f"{len(names)} parameters have no part in the loss of a micro-batch ({', '.join(names[:3])} ...), "
                "and DeepSpeed would change them all the same\n"
                "  recipes/accelerate/fsdp.yaml, or no sharding, leaves them alone"
            )
        # DeepSpeed means gradients over the processes; they have to be summed, for the loss is divided by everyone's labels
        self._engine.backward(loss * (self._processes / max(items, 1)), scale_wrt_gas=False)
        return loss.detach()

    def step(self) -> None:
        """Clip and update; a norm that is not finite leaves the weights as they are."""
        self._engine.step()

    @property
    def grad_norm(self) -> torch.Tensor:
        """Of the last step, before clipping."""
        import torch

        return torch.as_tensor(self._engine.get_global_grad_norm())

    def take_weights(self) -> None:
        """Train on from the weights that were loaded into the model."""
        self._engine.optimizer.refresh_fp32_params()

    def give_moments(self) -> None:
        """Take part where the first process asks for the moments of all parameters."""
        for parameter in self._model.parameters():
            self.state.get(parameter)

    def close(self) -> None:
        """Leave the model as it would be without DeepSpeed: each parameter in memory of its own, backward passes its own."""
        self._engine.destroy()
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.clone()
                del parameter._hp_mapping


def _engine(
    model: Any, optimizer: Any, accelerator: Accelerator, *, stage: int, max_grad_norm: float | None
) -> Any:
    """DeepSpeed around a model: nothing is scaled, nothing rounded, and nothing is written to standard output."""
    on_cpu = accelerator.device.type == "cpu"
    os.environ.setdefault("DS_ACCELERATOR", accelerator.device.type)
    with redirect_stdout(sys.stderr):  # its log, too
        import deepspeed

        if on_cpu:  # it would be compiled, and is for inference; gloo sums gradients
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        warnings.filterwarnings(
            "ignore", message=r"`torch.distributed.\w+` is deprecated", category=FutureWarning
        )
        config = {
            "train_micro_batch_size_per_gpu": 1,  # a number is wanted; lmkit decides what is in a micro-batch, and when to update
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm or 0.0,
            "steps_per_print": sys.maxsize,
            "zero_optimization": {
                "stage": stage,
                "reduce_bucket_size": BUCKET_NUMBERS,
                "allgather_bucket_size": BUCKET_NUMBERS,
            },
        }
        return deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )[0]


def _loss_of(model: Any, task: Task) -> Any:
    """The task's loss as a module, since DeepSpeed watches what goes in and out of one."""
    import torch

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Batch) -> Any:
            return task.loss(self.model, batch)

    return Loss()


def _reached(loss: torch.Tensor) -> set[int]:
    """The leaves, by ``id``, that a backward pass from here gives a gradient."""
    waiting: list[Any] = [] if loss.grad_fn is None else [loss.grad_fn]
    seen, found = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found


class _Moments:
    """The optimizer's state of each parameter, as if it were in one piece; all processes have to ask for the same ones.

    The first process gets whole tensors on the CPU, the others nothing. What is set is whole, too, and each keeps its part.
    """

    def __init__(self, optimizer: Any, parameters: Collection[int]):
        self._optimizer, self._parameters = optimizer, parameters

    def get(self, parameter: Any, default: Any = None) -> dict[str, Any]:
        import torch

        found: dict[str, Any] = {}
        if id(parameter) not in self._parameters:
            return found
        for kind, flat in next(iter(self._optimizer.state.values()), {}).items():
            whole = flat if flat.ndim == 0 else torch.zeros_like(parameter).flatten()
            if flat.ndim:
                if (mine := _Part.of(parameter, self._optimizer)) is not None:
                    mine.in_whole(whole).copy_(mine.in_flat(kind))
                torch.distributed.reduce(whole, 0)
            if torch.distributed.get_rank() == 0:
                found[kind] = whole.view_as(parameter).cpu() if flat.ndim else whole.cpu()
        return found

    def __getitem__(self, parameter: Any) -> _Part | dict[str, Any]:
        return _Part.of(parameter, self._optimizer) or {}


class _Part:
    """The piece of one parameter that this process updates: where it lies in the parameter, and in the optimizer's flat tensors."""

    def __init__(self, mapping: Any, optimizer: Any):
        self._whole, self._flat = mapping.lp_fragment_address, mapping.hp_fragment_address
        self._weights = optimizer.param_groups[mapping.param_group_index]["params"][0]
        self._state = optimizer.state[self._weights]

    @classmethod
    def of(cls, parameter: Any, optimizer: Any) -> _Part | None:
        """None: other processes update the whole of it."""
        mapping = parameter._hp_mapping
        return None if mapping is None else cls(mapping, optimizer)

    def in_whole(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flatten().narrow(0, self._whole.start, self._whole.numel)

    def in_flat(self, kind: str) -> torch.Tensor:
        found: torch.Tensor = self._state[kind].narrow(0, self._flat.start, self._flat.numel)
        return found

    def __setitem__(self, kind: str, value: torch.Tensor) -> None:
        """Keep this process's piece of the whole state of the parameter."""
        import torch

        if value.ndim == 0:
            self._state[kind] = value
            return
        if kind not in self._state:
            self._state[kind] = torch.zeros_like(self._weights)
        self.in_flat(kind).copy_(self.in_whole(value))
