"""The training loop of a recipe, run for some seconds at a time to see how fast it is. Nothing of it is kept."""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from typing import Any

from lmkit.data.splits import Splits
from lmkit.fast.unpadding import choose_packing
from lmkit.heads import unwrap
from lmkit.models.build import build_model, count_parameters
from lmkit.models.source import ModelSource
from lmkit.recipe.schema import Recipe
from lmkit.train.compiled import choose_compile
from lmkit.train.device import build_accelerator, choose_precision, native_bf16, peak_memory_bytes
from lmkit.train.kernels import choose_attention, choose_kernels
from lmkit.train.loop import Step, StepBatches, train_steps
from lmkit.train.micro_batch import choose_micro_batch
from lmkit.train.optim import build_optimizer
from lmkit.train.parallel import prepare_parallel
from lmkit.train.plans import UNLIMITED, plan_of, total_steps
from lmkit.train.prepare import prepare
from lmkit.train.spikes import Spikes

COMPARED_STEPS = 8  # whose micro-batches say whether another size would cut them otherwise
PRICED_PIECES = 64  # texts that the price of a token is the mean of
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is the machine's peak


class Trial:
    """A recipe's model, data and optimizer as a run has them, on this process alone."""

    def __init__(self, recipe: Recipe, splits: Splits, source: ModelSource | None):
        hardware, train = recipe.hardware.model_copy(update={"processes": "auto"}), recipe.train
        prepared = prepare(recipe, splits, source)
        self._recipe, self._task, self._encoded = recipe, prepared.task, prepared.encoded["train"]
        self._accelerator = build_accelerator(hardware)
        built = build_model(recipe, self._task, source)
        packing = choose_packing(recipe, self._task.problem, built.model)
        self._plan = plan_of(recipe, self._encoded)
        self._parameters = count_parameters(built.model)
        self._model = prepare_parallel(self._accelerator, built.model)
        optimizer = self._accelerator.prepare_optimizer(
            build_optimizer(
                self._model,
                train,
                lora_ratio=recipe.lora.learning_rate_ratio if recipe.lora else None,
                crf_rate=recipe.tagging.crf_learning_rate,
            )
        )
        self._attention, packing = choose_attention(
            hardware, self._model, self._accelerator, packing, {}, longest=recipe.data.max_length
        )
        self._kernels, _ = choose_kernels(hardware, self._model, self._accelerator, {})
        self._batches = StepBatches(
            self._encoded,
            self._plan,
            self._task,
            rank=0,
            ranks=1,
            budget=1,
            packed=packing is not None,
        )
        chosen = choose_micro_batch(
            hardware, train, self._model, self._batches, self._task, self._accelerator, packing, {}
        )
        self._batches.budget = chosen["tokens"]
        self._layers = ExitStack()
        if hardware.compile == "on":
            _, self._layers = choose_compile(
                hardware,
                self._model,
                self._batches,
                self._task,
                self._accelerator,
                packing,
                {},
                first=0,
                total=UNLIMITED,
                seconds=None,
            )
        self._memory = 0
        self._steps = train_steps(
            self._model,
            optimizer,
            self._batches,
            self._task,
            self._accelerator,
            first=0,
            total=UNLIMITED,  # so the rate stays near zero, and the weights near those of the start
            packing=packing,
            workers=hardware.workers,
            share_done=lambda: None,
            asked_to_stop=lambda: False,
            spikes=Spikes(train, []) if train.on_spike is not None else None,
        )

    def facts(self) -> dict[str, Any]:
        """What was chosen for the recipe here, and which other settings would compute something else."""
        import torch

        hardware, device, total = (
            self._recipe.hardware,
            self._accelerator.device,
            total_steps(self._recipe, self._plan),
        )
        budget = self._batches.budget
        cut, largest = self._cut(budget)
        trained, parameters = self._parameters
        return {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            "parameters": {"trained": trained, "total": parameters},
            "precision": choose_precision(hardware),
            "native_bf16": native_bf16(),
            "micro_batch_tokens": budget,
            "other_micro_batches": [
                size for size in (largest // 2, 2 * budget) if size and self._cut(size)[0] != cut
            ],
            "packing": self._batches.packed,
            "attention": self._attention["on"],
            "kernels": self._kernels["on"],
            "workers": hardware.workers,
            "examples": len(self._encoded),
            "examples_a_micro_batch": max(1, round(sum(cut) / len(cut))),
            "steps": total if total < UNLIMITED else None,
        }

    def _cut(self, budget: int) -> tuple[list[int], int]:
        """Examples in each micro-batch of some steps, and the tokens that the largest has room for."""
        steps = range(min(COMPARED_STEPS, self._plan.steps_per_epoch))
        parts = [
            part for step in steps for part in self._batches.cut(self._plan.examples(step), budget)
        ]
        return [len(part) for part in parts], max(
            len(part) * int(self._batches.slots[part].max()) for part in parts
        )

    def turn(self, seconds: float, *, settle: int) -> dict[str, Any]:
        """Steps for about so long, at least one.

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
            if self._accelerator.device.type == "cpu":
                steps[-1].loss.item()  # as a run does
        self._wait()
        took = time.perf_counter() - begun
        self._memory = max(self._memory, peak_memory_bytes())
        return {
            "seconds": took,
            "steps": len(steps),
            "examples": sum(len(self._plan.examples(step.number - 1)) for step in steps),
            "tokens": sum(step.tokens for step in steps),
            "slots": sum(step.slots for step in steps),
            "waited_seconds": sum(step.waited_seconds for step in steps),
            "micro_batch_tokens": self._batches.budget,
            "peak_memory_bytes": self._memory,
        }

    def matmul_peak(self, seconds: float) -> float:
        """FLOP/s of the fastest of some products of large square matrices, in the precision of the recipe."""
        import torch

        device = self._accelerator.device
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            choose_precision(self._recipe.hardware)
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
        """FLOPs of all matrix products of a forward and backward pass, over the tokens read; None: they do not fit.

        Counted by torch (2 for a multiplication and its addition) on texts that are computed one by one: without
        padding or other documents, with logits at the labels that count, causal attention counted whole
        (as Chowdhery et al. 2022 do), without what is computed twice.
        """
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        from lmkit.models.memory import is_out_of_memory

        if self._recipe.hardware.gradient_checkpointing:
            inner = unwrap(self._model)  # the second name is the one of transformers before 5.23
            (
                getattr(inner, "activation_checkpointing_disable", None)
                or inner.gradient_checkpointing_disable
            )()
        self._layers.close()  # nothing is counted inside of compiled kernels
        device, tokens = self._accelerator.device, 0
        pieces = self._encoded.pieces
        # the counter does not know the CPU's fused attention
        plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
        self._model.train()
        try:
            with plain, FlopCounterMode(display=False) as counter:
                for number in range(0, len(pieces), -(-len(pieces) // PRICED_PIECES)):
                    batch = self._task.collate([[pieces[number] | {"piece": number}]])
                    tokens += batch.tokens
                    self._accelerator.backward(self._task.loss(self._model, batch.to(device)))
                    self._model.zero_grad(set_to_none=True)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        return float(counter.get_total_flops() / tokens)

    def _wait(self) -> None:
        """Until the device has done what it was told."""
        if self._accelerator.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
