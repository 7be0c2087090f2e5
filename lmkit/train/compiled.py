"""The layers of a model as compiled kernels (torch.compile): whether they pay back within the run, and the way there and back.

Only the repeated layers are compiled, each class once for all its layers and for all shapes of micro-batches. What stands
around them stays as it is: embeddings, heads, losses, and the hooks on the backbone that choose positions and share rows.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.batch import Batch
from lmkit.errors import RecipeError
from lmkit.heads import unwrap
from lmkit.models.layers import stacks
from lmkit.models.memory import free_cached_memory
from lmkit.train.decisions import COMPILE, Decision
from lmkit.train.device import wait_for_device

if TYPE_CHECKING:
    from lmkit.train.setup import Setup

# on CPUs little is gained, and a resumed run would round otherwise than an uninterrupted one
TRIED_ON = ("cuda",)
# left in a run; with fewer nothing is timed, which would take as long as two steps
FEWEST_STEPS = 500
WORTH_TRYING = 1800.0  # seconds left in a run; a trial takes a minute or two
# compiled has to be faster by this, since shapes that were not tried may have to be compiled, too
GAIN = 1.05
TRIED = 4  # micro-batches, of one step
ROUNDS = 3  # over them, eager and compiled in turn; the fastest counts


def choose_compile(
    setup: Setup, earlier: Mapping[str, Decision], *, first: int, seconds: float | None
) -> Decision:
    """Compile the layers of the model or leave them: the same on all ranks.

    With ``auto`` they are tried where the rest of the run is long enough, and stay compiled if the micro-batches of its
    first step then take less time. Weights stay as they are.

    Args:
        earlier: decisions of a checkpoint; still good for the same wish on the same device, so that a resumed run computes
            with the kernels that it had.
        first: steps that are done.
        seconds: that ``train.max_minutes`` leaves; None without.

    Raises:
        RecipeError: ``on``, and they cannot be compiled.
    """
    asked = setup.recipe.hardware.compile
    device = setup.parallelism.device.type
    made_for: dict[str, Any] = {"device": device, "processes": setup.parallelism.ranks}
    decision = earlier.get(COMPILE)
    if decision is not None and not decision.answers(asked, made_for):
        decision = None
    tokens = setup.batches.budget if decision is None else decision.proof["tokens"]
    passes = _Passes(setup, tokens=tokens)
    proof: dict[str, Any] = {"tokens": tokens}
    if asked == "auto" and decision is None:
        is_on, why = _try(passes, first=first, seconds=seconds)
        if device in TRIED_ON:
            console.say(f"compile: {'on' if is_on else 'off'}, {why}")
        decision = Decision(COMPILE, asked, is_on, why, made_for, proof)
    else:
        if decision is None:
            why = "the recipe says so"
            decision = Decision(COMPILE, asked, asked == "on", why, made_for, proof)
        if decision.chosen and (problem := passes.compile()):
            remedy = "off computes the same without"
            raise RecipeError(problem, place=COMPILE, remedy=remedy)
    setup.computation.undo.enter_context(passes.compiled)
    setup.computation.is_compiled = decision.chosen
    return decision


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
    """Run compiled layers as they were while active."""
    import torch

    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _try(passes: _Passes, *, first: int, seconds: float | None) -> tuple[bool, str]:
    """Find out whether compiled layers pay back, with the reason for the user; they stay compiled if so."""
    setup, total = passes.setup, passes.setup.total
    device = setup.parallelism.device.type
    if device not in TRIED_ON:
        return (
            False,
            f"on a {device} it is not tried: a resumed run would no longer be the uninterrupted one bit for bit",
        )
    if not setup.parallelism.computes_alone:
        return (
            False,
            "processes exchange weights or gradients within their passes, which are not tried",
        )
    if total - first < FEWEST_STEPS:
        return False, f"{total - first} steps are too few to pay back"
    micro = setup.micro_batches(first)[:TRIED]
    passes.seconds(micro[:1])  # warms up
    left = passes.agreed(passes.seconds(micro) * passes.rounds(micro, total - first))
    if seconds is not None:
        left = min(left, seconds)
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

    def __init__(self, setup: Setup, *, tokens: int):
        self.setup, self.tokens, self.compiled = setup, tokens, ExitStack()

    def rounds(self, micro: Sequence[Batch], steps: int) -> float:
        """Return how many times these micro-batches make the steps of the run, by their tokens."""
        encoded, plan = self.setup.encoded, self.setup.plan
        mine: float = encoded.tokens / plan.steps_per_epoch / self.setup.parallelism.ranks
        return steps * mine / max(1, sum(batch.tokens for batch in micro))

    def compile(self) -> str | None:
        """Compile the layers, always with the same first shapes, which kernels are tuned for; or say why it cannot be."""
        model, batches = self.setup.model, self.setup.batches
        problem = None
        if self.setup.parallelism.device.type != "cuda" and not _compiler():
            problem = "there is no C++ compiler (g++, clang++, or CXX)"
        elif not repeated_layers(model):
            problem = (
                f"{unwrap(model).config.model_type} has no repeated layers that are found by name"
            )
        else:
            self.compiled = compile_layers(model)
            try:
                for examples in (batches.longest(self.tokens), batches.longest(1)):
                    self._run(batches.collate(examples))
            except RuntimeError as error:  # dynamo's and inductor's are such
                first_line = str(error).strip().splitlines()[0]
                problem = f"the layers cannot be compiled: {first_line}"
        if self.agreed(float(problem is not None)):
            self.compiled.close()
            self.setup.drop_gradients()
            free_cached_memory()
            return problem or "another process cannot compile the layers"
        return None

    def seconds(self, micro: Sequence[Batch]) -> float:
        """Measure the seconds that the slowest rank needs for them."""
        begun = time.perf_counter()
        for batch in micro:
            self._run(batch)
        return self.agreed(time.perf_counter() - begun)

    def agreed(self, value: float) -> float:
        """Return the largest of all ranks."""
        return self.setup.parallelism.largest([value])[0]

    def _run(self, batch: Batch) -> None:
        self.setup.model.train()
        self.setup.accumulate([batch], batch.items)
        wait_for_device(self.setup.parallelism.device)
        self.setup.drop_gradients()


def _compiler() -> str | None:
    """Return the C++ compiler that torch.compile would call."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "cl"):
        if name and (path := shutil.which(name)):
            return path
    return None
