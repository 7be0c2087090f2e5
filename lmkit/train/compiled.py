"""The layers of a model as compiled kernels (torch.compile): whether they pay back within the run, and the way there and back.

Only the repeated layers are compiled, each class once for all its layers and for all shapes of micro-batches. What stands
around them stays as it is: embeddings, heads, losses, and the hooks on the backbone that choose positions and share rows.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.batch import Batch
from lmkit.errors import RecipeError
from lmkit.fast.packing import Packing
from lmkit.fast.unpadding import shared_rows
from lmkit.heads import unwrap
from lmkit.models.layers import stacks
from lmkit.models.memory import free_cached_memory
from lmkit.recipe.schema import Hardware
from lmkit.tasks.base import Task
from lmkit.train.loop import StepBatches
from lmkit.train.parallel import largest
from lmkit.train.sharding import is_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator

TRIED_ON = (
    "cuda",
)  # on CPUs little is gained, and a resumed run would round otherwise than an uninterrupted one
FEWEST_STEPS = (
    500  # left in a run; with fewer nothing is timed, which would take as long as two steps
)
WORTH_TRYING = 1800.0  # seconds left in a run; a trial takes a minute or two
GAIN = 1.05  # compiled has to be faster by this, since shapes that were not tried may have to be compiled, too
TRIED = 4  # micro-batches, of one step
ROUNDS = 3  # over them, eager and compiled in turn; the fastest counts


def choose_compile(
    hardware: Hardware,
    model: Any,
    batches: StepBatches,
    task: Task,
    accelerator: Accelerator,
    packing: Packing | None,
    known: dict[str, Any],
    *,
    first: int,
    total: int,
    seconds: float | None,
) -> tuple[dict[str, Any], ExitStack]:
    """Compile the layers of the model or leave them: the same on all ranks.

    With ``auto`` they are tried where the rest of the run is long enough, and stay compiled if the micro-batches of its
    first step then take less time. Weights stay as they are.

    Args:
        known: what a checkpoint kept; still good for the same wish on the same device, so that a resumed run computes
            with the kernels that it had.
        first, total: steps that are done, and that the run has.
        seconds: that ``train.max_minutes`` leaves; None without.

    Returns:
        What was decided, under ``on``, and ``why``; and what makes the layers again what they were, when it is closed.

    Raises:
        RecipeError: ``on``, and they cannot be compiled.
    """
    wanted = {
        "asked": hardware.compile,
        "device": accelerator.device.type,
        "processes": accelerator.num_processes,
    }
    is_known = {key: known.get(key) for key in wanted} == wanted
    passes = _Passes(
        model,
        batches,
        task,
        accelerator,
        packing,
        tokens=known["tokens"] if is_known else batches.budget,
    )
    if hardware.compile == "auto" and not is_known:
        on, why = _try(passes, first=first, total=total, seconds=seconds)
        if passes.device in TRIED_ON:
            console.say(f"compile: {'on' if on else 'off'}, {why}")
        return wanted | {"tokens": passes.tokens, "on": on, "why": why}, passes.compiled
    found = (
        known
        if is_known
        else wanted
        | {"tokens": passes.tokens, "on": hardware.compile == "on", "why": "the recipe says so"}
    )
    if found["on"] and (problem := passes.compile()):
        raise RecipeError(problem, place="hardware.compile", remedy="off computes the same without")
    return found, passes.compiled


def compile_layers(model: Any) -> ExitStack:
    """Compile the repeated layers in place, parameters keep their names; closing what is returned takes it back."""
    import torch

    compiled, config = ExitStack(), unwrap(model).config
    if getattr(
        config, "use_cache", False
    ):  # training reads nothing twice, and each layer would need kernels for its own part
        config.use_cache = False
        compiled.callback(setattr, config, "use_cache", True)
    for layer in repeated_layers(model):
        layer.forward = torch.compile(layer.forward, dynamic=True)
        compiled.callback(delattr, layer, "forward")
    return compiled


def repeated_layers(model: Any) -> list[Any]:
    return [
        model.get_submodule(f"{stack}.{number}")
        for stack, depth in stacks(model).items()
        for number in range(depth)
    ]


def uncompiled() -> AbstractContextManager[Any]:
    """While active, compiled layers run as they were: an evaluation is short, and would compile them once more."""
    import torch

    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _try(passes: _Passes, *, first: int, total: int, seconds: float | None) -> tuple[bool, str]:
    """Whether compiled layers pay back, and the reason for the user; they stay compiled if so."""
    if passes.device not in TRIED_ON:
        return (
            False,
            f"on a {passes.device} it is not tried: a resumed run would no longer be the uninterrupted one bit for bit",
        )
    if passes.is_sharded:
        return (
            False,
            "processes exchange weights or gradients within their passes, which are not tried",
        )
    if total - first < FEWEST_STEPS:
        return False, f"{total - first} steps are too few to pay back"
    micro = passes.batches[first][:TRIED]
    passes.seconds(micro[:1])  # warms up
    left = min(
        passes.agreed(passes.seconds(micro) * passes.rounds(micro, total - first)),
        float("inf") if seconds is None else seconds,
    )
    if left < WORTH_TRYING:
        return (
            False,
            f"about {left / 60:.0f} minutes of training are left, and from {WORTH_TRYING / 60:.0f} on it is tried",
        )
    begun = time.perf_counter()
    if problem := passes.compile():
        return False, problem
    passes.seconds(micro)  # shapes that need kernels of their own
    took = time.perf_counter() - begun
    eager = compiled = float("inf")
    for _ in range(ROUNDS):
        compiled = min(compiled, passes.seconds(micro))
        with uncompiled():
            eager = min(eager, passes.seconds(micro))
    if eager < GAIN * compiled:
        passes.compiled.close()
        return False, f"tried for {took:.0f} seconds: {eager / compiled:.2f} times the speed"
    return True, f"{eager / compiled:.2f} times the speed, after {took:.0f} seconds of compiling"


class _Passes:
    """Forward and backward passes that change nothing; what they find is agreed on by all ranks.

    Args:
        tokens: of the micro-batches for which kernels are compiled.
    """

    def __init__(
        self,
        model: Any,
        batches: StepBatches,
        task: Task,
        accelerator: Accelerator,
        packing: Packing | None,
        *,
        tokens: int,
    ):
        self.batches, self.tokens, self.compiled = batches, tokens, ExitStack()
        self._model, self._task, self._accelerator, self._packing = (
            model,
            task,
            accelerator,
            packing,
        )
        self.is_sharded, self.device = (
            is_sharded(model),
            accelerator.device.type,
        )

    def rounds(self, micro: list[Batch], steps: int) -> float:
        """How many times these micro-batches make the steps of the run, by their tokens."""
        encoded, plan = self.batches.encoded, self.batches.plan
        mine: float = encoded.tokens / plan.steps_per_epoch / self._accelerator.num_processes
        return steps * mine / max(1, sum(batch.tokens for batch in micro))

    def compile(self) -> str | None:
        """Compile the layers, always with the same first shapes, which kernels are tuned for; or say why it cannot be."""
        problem = (
            None
            if self._accelerator.device.type == "cuda" or _compiler()
            else "there is no C++ compiler (g++, clang++, or CXX)"
        )
        if problem is None and not repeated_layers(self._model):
            problem = f"{unwrap(self._model).config.model_type} has no repeated layers that are found by name"
        if problem is None:
            self.compiled = compile_layers(self._model)
            try:
                for examples in (self.batches.longest(self.tokens), self.batches.longest(1)):
                    self._run(self.batches.collate(examples))
            except RuntimeError as error:  # dynamo's and inductor's are such
                problem = f"the layers cannot be compiled: {str(error).strip().splitlines()[0]}"
        if self.agreed(float(problem is not None)):
            self.compiled.close()
            self._drop()
            free_cached_memory()
            return problem or "another process cannot compile the layers"
        return None

    def seconds(self, micro: list[Batch]) -> float:
        """That the slowest rank needs for them."""
        begun = time.perf_counter()
        for batch in micro:
            self._run(batch)
        return self.agreed(time.perf_counter() - begun)

    def agreed(self, value: float) -> float:
        """The largest of all ranks."""
        return largest(self._accelerator, [value])[0]

    def _run(self, batch: Batch) -> None:
        from lmkit.fast.registry import computed_faster

        self._model.train()
        moved = batch.to(self._accelerator.device)
        with (
            shared_rows(self._model, self._packing, moved) as given,
            computed_faster(self._model, self._accelerator.device),
        ):
            self._accelerator.backward(self._task.loss(self._model, given) / max(batch.items, 1))
        if self._accelerator.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        self._drop()

    def _drop(self) -> None:
        for parameter in self._model.parameters():
            parameter.grad = None


def _compiler() -> str | None:
    """The C++ compiler that torch.compile would call."""
    return next(
        (
            found
            for name in (os.environ.get("CXX"), "g++", "clang++", "cl")
            if name and (found := shutil.which(name))
        ),
        None,
    )
