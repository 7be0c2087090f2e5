"""Dropout (Srivastava et al. 2014) on CPUs: four decisions from each random number, in place of one.

PyTorch draws a number for every element, one after the other on a single core, which can take as long as the layers between.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lmkit.batch import Batch

RESOLUTION = 2**16  # a rate is kept to within half of its inverse
EAGER = "eager_attention_forward"  # the function of each of transformers' files that writes attention out


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor, rate: float) -> torch.Tensor:
        dropped = round(rate * RESOLUTION)
        numbers = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        # ones and zeros of the values' own type: comparing and multiplying is vectorised then, choosing by booleans is not
        kept = torch.empty(values.shape, dtype=values.dtype)
        torch.ge(
            numbers.view(torch.int16)[: values.numel()].view(values.shape),
            dropped - RESOLUTION // 2,
            out=kept,
        )
        context.save_for_backward(kept)
        context.scale = RESOLUTION / (RESOLUTION - dropped) if dropped < RESOLUTION else 0.0
        return (values * kept).mul_(context.scale)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (kept,) = context.saved_tensors
        return (gradients[0] * kept).mul_(context.scale), None


def dropout(values: torch.Tensor, rate: float) -> torch.Tensor:
    """Set values to zero with this probability and scale the rest so that the mean stays.

    It draws from PyTorch's own generator.
    """
    if rate == 0:
        return values
    if values.device.type != "cpu":
        return torch.dropout(values, rate, True)
    dropped: torch.Tensor = _Dropout.apply(values, rate)  # type: ignore[no-untyped-call]
    return dropped


class FastDropout:
    """The path that lets a model on a CPU draw its dropout faster."""

    name = "dropout"
    experimental = False

    def available(self, model: Any, device: torch.device) -> str | None:
        if device.type != "cpu":
            return "PyTorch draws fast on a GPU"
        functions = [module._gradient_checkpointing_func for module in _checkpointed(model)]
        if all(getattr(function, "func", None) is checkpoint for function in functions):
            return None
        return "layers that are computed again might draw otherwise then"

    def transform(self, batch: Batch) -> Batch:
        return batch

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """Let the model's dropout layers, and the function that some models call, draw as above.

        Layers are replaced one by one, which costs nothing. Marian and BART call the function of PyTorch: for them a mode of
        this thread looks at every call of PyTorch and passes it on, which costs 2 to 4 % of a step.
        """
        if any(_calls_the_function(module) for module in model.modules()):
            with _DrawFaster(), _again_in_the_mode(model):
                yield model
            return
        layers = [module for module in model.modules() if _is_replaceable(module)]
        for layer in layers:
            layer.forward = MethodType(_forward, layer)
        try:
            yield model
        finally:
            for layer in layers:
                del layer.forward


class _DrawFaster(TorchFunctionMode):
    """Replace ``torch.nn.functional.dropout`` in this thread while active."""

    def __torch_function__(
        self,
        function: Any,
        types: Iterable[Any],
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is torch.nn.functional.dropout:
            return _draw(*arguments, **(options or {}))
        return function(*arguments, **(options or {}))


@contextmanager
def _again_in_the_mode(model: Any) -> Iterator[None]:
    """Let checkpointed layers, which are computed again in the backward pass, draw there as they did before.

    PyTorch leaves the mode while it computes gradients.
    """
    layers = {layer: layer._gradient_checkpointing_func for layer in _checkpointed(model)}
    for layer, function in layers.items():
        layer._gradient_checkpointing_func = partial(function, context_fn=_contexts)
    try:
        yield
    finally:
        for layer, function in layers.items():
            layer._gradient_checkpointing_func = function


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[Any]]:
    """Return the contexts of a checkpointed layer: in the forward pass, and when it is computed again."""
    return nullcontext(), _DrawFaster()


def _checkpointed(model: Any) -> list[Any]:
    """Return the modules that compute their activations again."""
    modules = [
        module for module in model.modules() if getattr(module, "gradient_checkpointing", False)
    ]
    return [module for module in modules if hasattr(module, "_gradient_checkpointing_func")]


def _draw(
    input: torch.Tensor,  # noqa: A002
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> torch.Tensor:
    if inplace:
        return torch.nn.functional.dropout(input, p, training, inplace)
    return dropout(input, p) if training else input


def _forward(layer: torch.nn.Dropout, values: torch.Tensor) -> torch.Tensor:
    return _draw(values, layer.p, layer.training, layer.inplace)


def _is_replaceable(module: torch.nn.Module) -> bool:
    return (
        isinstance(module, torch.nn.Dropout)
        and type(module).forward is torch.nn.Dropout.forward
        and "forward" not in vars(module)
    )


def _calls_the_function(module: torch.nn.Module) -> bool:
    """Tell whether a module calls ``torch.nn.functional.dropout`` itself; PyTorch's own layers do not matter."""
    kind: Any = type(module)
    config = getattr(module, "config", None)
    return _is_called_in(kind, is_eager=getattr(config, "_attn_implementation", None) == "eager")


@cache
def _is_called_in(kind: type[torch.nn.Module], *, is_eager: bool) -> bool:
    """Look for the function's name in the methods of a class and in the functions that they call.

    Args:
        is_eager: attention is the function for it that stands in the model's own file.
    """
    members = [member for parent in kind.__mro__ for member in vars(parent).values()]
    for member in members:
        method = inspect.unwrap(member) if isinstance(member, FunctionType) else None
        if method is None or method.__module__.startswith("torch."):
            continue
        names = {*method.__code__.co_names, *method.__code__.co_freevars}
        called = [method.__globals__.get(name) for name in names]
        if not is_eager:
            called = [each for each in called if getattr(each, "__name__", "") != EAGER]
        functions = [each for each in called if isinstance(each, FunctionType)]
        if any(_names_the_function(function) for function in (method, *functions)):
            return True
    return False


def _names_the_function(function: FunctionType) -> bool:
    names = function.__code__.co_names
    return "dropout" in names and ("functional" in names or "F" in names)
