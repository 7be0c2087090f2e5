"""Liger's fused kernels (Hsu et al. 2024) for what stands between the matrix products: RMSNorm and gated layers.

Liger's own patches replace classes of transformers for the whole process, also in the model that a run loads to prove what it has
saved. Here single modules of the model that is trained compute with them, until the steps are done. Which formula a module has is
not believed by its name but tried, module by module and then on the whole model; its loss is not used, since lmkit has its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lmkit.errors import first_line
from lmkit.fast.proof import Precision, farther, in_fp32, states_and_gradients
from lmkit.heads import unwrap
from lmkit.models.memory import free_cached_memory, is_out_of_memory
from lmkit.models.trials import in_evaluation

Forward = Callable[[torch.Tensor], torch.Tensor]
NORMS = (
    (0.0, "llama"),
    (1.0, "gemma"),
    (0.0, "gemma"),
)  # what is added to the weight, and what is computed in fp32
NO_MEMORY = "there is no memory to try them"
NOTHING = "this model has no layers whose formula liger-kernel is shown to have"
NO_WAY = -1
LENGTHS = (12, 7)  # tokens of the texts that the whole model is tried with


@dataclass(frozen=True)
class Kernels:
    """Liger's functions.

    Args:
        norm: input, weight, epsilon, what is added to the weight, what is computed in fp32, whether it may overwrite gradients.
        gates: activation -> function of what is activated and what it is multiplied with. Overwrites both in the backward pass.
    """

    experimental: ClassVar[bool] = True  # they have run under Triton's interpreter alone
    norm: Callable[..., torch.Tensor]
    gates: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]


def liger_kernels() -> Kernels | str:
    """The functions, or why there are none."""
    try:
        from liger_kernel.ops import (
            LigerGELUMulFunction,
            LigerRMSNormFunction,
            LigerSiLUMulFunction,
        )
    except Exception as error:  # of a package that is broken, and not wanted by name
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == "liger_kernel"
        return (
            "liger-kernel is not installed (pip install 'lmkit[liger]')"
            if is_missing
            else f"liger-kernel cannot be loaded: {first_line(error)}"
        )
    return Kernels(
        LigerRMSNormFunction.apply,
        {"silu": LigerSiLUMulFunction.apply, "gelu": LigerGELUMulFunction.apply},
    )


def fuse(
    model: Any, kernels: Kernels, *, precision: Precision, ways: dict[str, int] | None = None
) -> tuple[ExitStack, str | None, str]:
    """Let the modules of a model compute with these kernels, where that is shown to be the same.

    Args:
        model: where it is trained.
        precision: autocast as in training.
        ways: what was found out before, for this model with these kernels, and is not tried again; filled where it is empty.

    Returns:
        What makes the modules again what they were, when it is closed; None, or why nothing was replaced; and what was.
    """
    inner, undo = unwrap(model), ExitStack()
    if inner.base_model is inner:
        return undo, "the model has no backbone of its own", ""
    if not any(_kind(module) for module in inner.base_model.modules()):
        return undo, NOTHING, ""
    ways = {} if ways is None else ways
    is_known = bool(ways)
    counts: Counter[str] = Counter()
    try:
        with in_evaluation(inner):
            with _arriving(inner) as types:
                contexts = [precision] if is_known else [lambda: in_fp32(inner), precision]
                plain = [
                    states_and_gradients(inner, lambda c=context: _states(inner, c))  # type: ignore[misc]
                    for context in contexts
                ]
            for module, kind in types.items():  # of the pass in the run's precision, the last one
                what, *formula = _kind(module) or ("",)
                key, possible = (
                    " ".join(map(str, (type(module), kind, *formula))),
                    list(_ways(module, kernels)),
                )
                if key not in ways:
                    tried = () if is_known else enumerate(possible)
                    ways[key] = next(
                        (n for n, way in tried if _is_same(module, way, kind, precision)), NO_WAY
                    )
                if ways[key] != NO_WAY:
                    module.forward = possible[ways[key]](module)
                    undo.callback(delattr, module, "forward")
                    counts[what] += 1
            if not counts:
                return undo, NOTHING, ""
            found = states_and_gradients(inner, lambda: _states(inner, precision))
        problem = None
        if not is_known:
            problem = next(
                (each for three in zip(*plain, found, strict=True) if (each := farther(*three))),
                None,
            )
    except Exception as error:  # triton's and its compilers' have nothing else in common
        undo.close()
        problem = (
            NO_MEMORY
            if is_out_of_memory(error)
            else ": ".join(dict.fromkeys((type(error).__name__, first_line(error))))
        )
    if problem:
        undo.close()
        if problem == NO_MEMORY:
            free_cached_memory()
        return undo, problem, ""
    return undo, None, " and ".join(f"{number} {name}" for name, number in counts.items())


@contextmanager
def _arriving(model: Any) -> Iterator[dict[Any, torch.dtype]]:
    """While active, the type of what arrives at each module that could be replaced is noted."""
    types: dict[Any, torch.dtype] = {}

    def note(module: Any, arguments: tuple[Any, ...]) -> None:
        types[module] = arguments[0].dtype

    modules = (module for module in model.base_model.modules() if _kind(module) is not None)
    hooks = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield types
    finally:
        for hook in hooks:
            hook.remove()


def _kind(module: Any) -> tuple[Any, ...] | None:
    """What decides the formula of a module beside its class, a name for the user first; None: nothing to replace."""
    if "forward" in vars(module):
        return None
    if all(
        isinstance(getattr(module, name, None), torch.nn.Module)
        for name in ("gate_proj", "up_proj", "down_proj")
    ):
        return "gated layers", _width(module), str(getattr(module, "act_fn", None))
    weights = dict(module.named_parameters())
    if (
        list(weights) == ["weight"]
        and weights["weight"].ndim == 1
        and isinstance(_epsilon(module), float)
    ):
        return "norms", _width(module), _epsilon(module)
    return None


def _width(module: Any) -> int:
    """Numbers that a token has when it arrives."""
    return (
        int(module.gate_proj.in_features) if hasattr(module, "gate_proj") else module.weight.numel()
    )


def _epsilon(module: Any) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _ways(module: Any, kernels: Kernels) -> Iterator[Callable[[Any], Forward]]:
    """What the formula of a module may be."""
    if hasattr(module, "gate_proj"):
        for gate in kernels.gates.values():
            yield (
                lambda own, gate=gate: (  # type: ignore[misc]
                    lambda states: own.down_proj(gate(own.gate_proj(states), own.up_proj(states)))
                )
            )
        return
    for added, cast in NORMS:  # nothing is overwritten: what a norm gave may be needed elsewhere
        yield lambda own, added=added, cast=cast: (  # type: ignore[misc]
            lambda states: kernels.norm(states, own.weight, _epsilon(own), added, cast, False)
        )


def _is_same(
    module: Any, way: Callable[[Any], Forward], kind: torch.dtype, precision: Precision
) -> bool:
    """Whether a module in evaluation mode computes this, forward and backward, in fp32, from inputs of this type in the run's
    precision, and once more as in training.

    The output has to be of the module's type: Llama's norms make fp32 of bf16 where their weights are in fp32, Liger's do not.
    """
    device = next(module.parameters()).device
    states = 2 * torch.arange(8 * _width(module), device=device).float().sin().view(2, 4, -1)
    if not hasattr(module, "gate_proj"):
        module = deepcopy(module)  # with weights that are not all the same, as new norms' are
        with torch.no_grad():
            module.weight.copy_(1 + torch.arange(module.weight.numel(), device=device).cos())
        module.weight.requires_grad_()
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    fused = way(module)
    exact, found = (
        _values(function, states, learned, in_fp32(module)) for function in (module.forward, fused)
    )
    if any(farther(true, true, value) for true, value in zip(exact, found, strict=True)):
        return False
    plain, found = (
        _values(function, states.to(kind), learned, precision())
        for function in (module.forward, fused)
    )
    if any(one.dtype != other.dtype for one, other in zip(plain, found, strict=True)):
        return False
    if any(
        farther(*(each.float() for each in three))
        for three in zip(exact, plain, found, strict=True)
    ):
        return False
    exact, found = (
        _in_training(module, function, states, learned) for function in (module.forward, fused)
    )
    return not any(farther(true, true, value) for true, value in zip(exact, found, strict=True))


def _in_training(
    module: Any, function: Forward, states: torch.Tensor, learned: list[Any]
) -> list[torch.Tensor]:
    """As ``_values``, with the dropout inside of the module, of which evaluation shows nothing; drawn alike in every call."""
    module.train()
    try:
        with torch.random.fork_rng([states.device] if states.is_cuda else []):
            torch.manual_seed(0)
            return _values(function, states, learned, in_fp32(module))
    finally:
        module.eval()


def _values(
    function: Forward,
    states: torch.Tensor,
    learned: list[Any],
    context: AbstractContextManager[Any],
) -> list[torch.Tensor]:
    """What a function makes of these, and the gradients at them and at what is learned."""
    leaf = states.clone().requires_grad_()
    with context, torch.enable_grad():
        output = function(leaf)
        weights = torch.arange(output.numel(), device=output.device).cos().view_as(output)
        gradients = torch.autograd.grad((output * weights).sum(), [leaf, *learned])
    return [output.detach(), *gradients]


def _states(model: Any, precision: Precision) -> torch.Tensor:
    """Hidden states of two texts' tokens."""
    vocabulary = len(model.get_input_embeddings().weight)
    ids = torch.arange(2 * max(LENGTHS), device=model.device).view(2, -1) * 5 % vocabulary
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long().to(model.device)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs |= {"decoder_input_ids": ids.flip(1)}
    with precision():
        states: torch.Tensor = model.base_model(**inputs).last_hidden_state
    return states[mask.bool()]
