"""The training loop of a recipe, run for some seconds at a time to see how fast it is. Nothing of it is kept."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from lmkit.data.splits import Splits
from lmkit.heads import unwrap
from lmkit.models.source import ModelSource
from lmkit.recipe.schema import Recipe
from lmkit.train.decisions import ATTENTION, KERNELS
from lmkit.train.device import (
    choose_precision,
    device_name,
    native_bf16,
    peak_memory_bytes,
    wait_for_device,
)
from lmkit.train.loop import Step, train_steps
from lmkit.train.measurements import TrialFacts, Turn
from lmkit.train.plans import UNLIMITED
from lmkit.train.prepare import prepare
from lmkit.train.setup import Computation, decide, decide_compile, set_up

COMPARED_STEPS = 8  # whose micro-batches say whether another size would cut them otherwise
PRICED_PIECES = 64  # texts that the price of a token is the mean of
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is the machine's peak


class Trial:
    """The set-up of a recipe's run, on this process alone, and some of its steps."""

    def __init__(self, recipe: Recipe, splits: Splits, source: ModelSource | None):
        hardware = recipe.hardware.model_copy(update={"processes": "auto"})
        alone = recipe.model_copy(update={"hardware": hardware})
        self._setup = set_up(alone, prepare(recipe, splits, source))
        self._total = self._setup.total
        # so the rate stays near zero, and the weights near those of the start
        self._setup.total = UNLIMITED
        decide(self._setup)
        if hardware.compile == "on":
            decide_compile(self._setup)
        self._memory = 0
        self._steps = train_steps(self._setup)

    def facts(self) -> TrialFacts:
        """Return what was chosen for the recipe here, and which other settings would compute something else."""
        import torch

        setup, hardware = self._setup, self._setup.recipe.hardware
        budget = setup.batches.budget
        cut, largest = self._cut(budget)
        trained, parameters = setup.parameter_counts
        sizes = [size for size in (largest // 2, 2 * budget) if size]
        return TrialFacts(
            device=device_name(setup.parallelism.device),
            threads=torch.get_num_threads(),
            parameters={"trained": trained, "total": parameters},
            precision=choose_precision(hardware),
            native_bf16=native_bf16(),
            micro_batch_tokens=budget,
            other_micro_batches=[size for size in sizes if self._cut(size)[0] != cut],
            packing=setup.batches.packed,
            attention=setup.decisions[ATTENTION].chosen,
            kernels=setup.decisions[KERNELS].chosen,
            workers=hardware.workers,
            examples=len(setup.encoded),
            examples_a_micro_batch=max(1, round(sum(cut) / len(cut))),
            steps=self._total if self._total < UNLIMITED else None,
        )

    def _cut(self, budget: int) -> tuple[list[int], int]:
        """Return the examples in each micro-batch of some steps, and the tokens that the largest has room for."""
        plan, batches = self._setup.plan, self._setup.batches
        parts = []
        for step in range(min(COMPARED_STEPS, plan.steps_per_epoch)):
            parts += batches.cut(plan.examples(step), budget)
        sizes = [len(part) * int(batches.slots[part].max()) for part in parts]
        return [len(part) for part in parts], max(sizes)

    def turn(self, seconds: float, *, settle: int) -> Turn:
        """Run steps for about so long, at least one.

        Args:
            settle: steps that come first and are not measured: until caches are warm, and what loader workers
                prepared while nothing was measured is used up; fewer where they take as long as the turn.
        """
        begun = time.perf_counter()
        for _ in range(settle):
            next(self._steps)
            if time.perf_counter() - begun >= seconds:
                break
        self._wait()
        begun = time.perf_counter()
        steps: list[Step] = []
        while not steps or time.perf_counter() - begun < seconds:
            steps.append(next(self._steps))
            if self._setup.parallelism.device.type == "cpu":
                steps[-1].loss.item()  # as a run does
        self._wait()
        took = time.perf_counter() - begun
        self._memory = max(self._memory, peak_memory_bytes())
        return Turn(
            seconds=took,
            steps=len(steps),
            examples=sum(len(self._setup.plan.examples(step.number - 1)) for step in steps),
            tokens=sum(step.tokens for step in steps),
            slots=sum(step.slots for step in steps),
            waited_seconds=sum(step.waited_seconds for step in steps),
            micro_batch_tokens=self._setup.batches.budget,
            peak_memory_bytes=self._memory,
        )

    def matmul_peak(self, seconds: float) -> float:
        """Measure the FLOP/s of the fastest of some products of large square matrices, in the precision of the recipe."""
        import torch

        device = self._setup.parallelism.device
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            choose_precision(self._setup.recipe.hardware)
        ]
        side = SIDE.get(device.type, SIDE["cpu"])
        left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        out, best, ends = left @ right, float("inf"), time.perf_counter() + seconds
        while best == float("inf") or time.perf_counter() < ends:
            self._wait()
            begun = time.perf_counter()
            torch.matmul(left, right, out=out)
            self._wait()
            best = min(best, time.perf_counter() - begun)
        if device.type == "cuda":
            del left, right, out
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()  # what the steps took is in ``_memory``
        return 2 * side**3 / best

    def flops_per_token(self) -> float | None:
        """Count the FLOPs of all matrix products of a forward and backward pass, over the tokens read; None: they do not fit.

        Counted by torch (2 for a multiplication and its addition) on texts that are computed one by one: without
        padding or other documents, with logits at the labels that count, causal attention counted whole
        (as Chowdhery et al. 2022 do), without what is computed twice.
        """
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        from lmkit.models.memory import is_out_of_memory

        setup = replace(self._setup, computation=Computation(self._setup.computation.is_fast))
        if setup.recipe.hardware.gradient_checkpointing:
            _keep_activations(setup.model)
        self._setup.computation.undo.close()  # nothing is counted inside of compiled kernels
        tokens, pieces = 0, setup.encoded.pieces
        # the counter does not know the CPU's fused attention
        on_cpu = setup.parallelism.device.type == "cpu"
        plain = sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext()
        setup.model.train()
        try:
            with plain, FlopCounterMode(display=False) as counter:
                for number in range(0, len(pieces), -(-len(pieces) // PRICED_PIECES)):
                    batch = setup.task.collate([[pieces[number] | {"piece": number}]])
                    tokens += batch.tokens
                    setup.accumulate([batch], 1)
                    setup.drop_gradients()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        return float(counter.get_total_flops() / tokens)

    def _wait(self) -> None:
        wait_for_device(self._setup.parallelism.device)


def _keep_activations(model: Any) -> None:
    """Switch gradient checkpointing off."""
    inner = unwrap(model)  # the second name is the one of transformers before 5.23
    disable = getattr(inner, "activation_checkpointing_disable", None)
    (disable or inner.gradient_checkpointing_disable)()
