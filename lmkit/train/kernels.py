"""Which kernels a run computes with where PyTorch's own are not the only ones: found, tried on the model, said, kept for --resume.

All of them compute the same up to rounding, and none is believed to: see ``fast/flash.py`` and ``fast/liger.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.errors import RecipeError
from lmkit.run import versions
from lmkit.train.decisions import ATTENTION, KERNELS, SDPA, TORCH, Decision
from lmkit.train.device import choose_precision, device_name

if TYPE_CHECKING:
    from lmkit.fast.packing import Packing
    from lmkit.train.setup import Setup

TRIED_ON = ("cuda",)
FLASH = "FlashAttention"
LIGER = "Liger's"


def choose_attention(setup: Setup, earlier: Mapping[str, Decision]) -> Decision:
    """Choose the attention of rows that texts share; the same on all ranks.

    Batches with one text a row, evaluation and prediction stay with SDPA, which needs no mask where there is no padding.

    Args:
        earlier: decisions of a checkpoint; still good for the same wish on the same device.

    Raises:
        RecipeError: ``flash``, or what a resumed run had, cannot be used.
    """
    asked, packing = setup.recipe.hardware.attention, setup.computation.packing
    had = _still_good(setup, earlier, ATTENTION, asked)
    if had is not None and had.chosen == SDPA:
        return had
    chosen, why, holds_for = None, "the recipe says so", _holds_for(setup)
    if asked != "sdpa":
        problem = _without_flash(setup)
        if problem is None:
            chosen, problem = _proven(setup, had, is_proven=_is_proven(had, holds_for))
        why = problem or "shown to compute what SDPA computes on this model"
    if chosen is None:
        _refuse(had, FLASH if asked == "flash" else None, why, place=ATTENTION, plain="sdpa")
    else:
        setup.computation.packing = chosen
    name = SDPA if chosen is None else f"{FLASH}, {getattr(chosen.kernel, 'name', '')}"
    if asked == "auto" and setup.parallelism.device.type in TRIED_ON and packing is not None:
        console.say(f"attention of shared rows: {name}; {why}")
    return Decision(ATTENTION, asked, name, why, _made_for(setup), {"holds_for": holds_for})


def _without_flash(setup: Setup) -> str | None:
    """Return why FlashAttention is not tried; None: it is."""
    if setup.parallelism.device.type not in TRIED_ON:
        return "it needs a GPU"
    if setup.computation.packing is None:
        return "texts share no rows, and without a mask SDPA has a kernel as fast"
    if choose_precision(setup.recipe.hardware) == "fp32":
        return "it computes in bf16 or fp16, and this run in fp32"
    if not setup.parallelism.computes_alone:
        return "the weights are in parts, and no process can try it alone"
    return None


def _proven(
    setup: Setup, had: Decision | None, *, is_proven: bool
) -> tuple[Packing | None, str | None]:
    """Return the packing with the first kernel that no process refutes, or None and why there is none.

    Args:
        is_proven: the kernel that the run had needs no proof of its results once more.
    """
    from lmkit.fast.flash import kernels
    from lmkit.fast.flash_proof import refuted

    packing = setup.computation.packing
    assert packing is not None
    problems = []
    for name, kernel in kernels().items():
        if had is not None and had.chosen != f"{FLASH}, {name}":
            continue
        if isinstance(kernel, str):
            other, problem = packing, kernel
        else:
            other = replace(packing, kernel=kernel)
            problem = refuted(  # type: ignore[assignment]
                setup.model,
                other,
                longest=setup.recipe.data.max_length,
                precision=setup.parallelism.autocast,
                # a run that goes on had it as it is
                repeatable=setup.recipe.hardware.attention == "auto" and had is None,
                again=is_proven,
            )
        if not setup.parallelism.any(problem is not None):
            return other, None
        problems.append(f"{name} {problem or 'cannot be used by another process'}")
    return None, "; ".join(problems)


def choose_kernels(setup: Setup, earlier: Mapping[str, Decision]) -> Decision:
    """Choose the kernels of norms and gated layers; the same on all ranks.

    Args, Raises: as above.
    """
    asked = setup.recipe.hardware.kernels
    had = _still_good(setup, earlier, KERNELS, asked)
    if had is not None and had.chosen == TORCH:
        return had
    is_fused, why, holds_for = False, "the recipe says so", _holds_for(setup)
    ways: dict[str, int] = {}
    if had is not None and _is_proven(had, holds_for):
        ways.update(had.proof.get("ways", {}))
    if asked != "torch":
        is_fused, why = _fuse(setup, ways)
    if not is_fused:
        _refuse(had, LIGER if asked == "liger" else None, why, place=KERNELS, plain="torch")
    name = LIGER if is_fused else TORCH
    if asked == "auto" and setup.parallelism.device.type in TRIED_ON:
        console.say(f"kernels of norms and gated layers: {name}; {why}")
    proof = {"holds_for": holds_for, "ways": ways}
    return Decision(KERNELS, asked, name, why, _made_for(setup), proof)


def _fuse(setup: Setup, ways: dict[str, int]) -> tuple[bool, str]:
    """Put Liger's kernels in place on all processes or on none; return whether they are, and why."""
    if setup.parallelism.device.type not in TRIED_ON:
        return False, "they need a GPU"
    if not setup.parallelism.computes_alone:
        return False, "the weights are in parts, and no process can try them alone"
    from lmkit.fast.liger import fuse, liger_kernels

    kernels, modules, parts = liger_kernels(), ExitStack(), ""
    if isinstance(kernels, str):
        problem: str | None = kernels
    else:
        precision = setup.parallelism.autocast
        modules, problem, parts = fuse(setup.model, kernels, precision=precision, ways=ways)
    if setup.parallelism.any(problem is not None):
        modules.close()
        return False, problem or "another process cannot use them"
    setup.computation.undo.enter_context(modules)
    return True, f"{parts} are shown to compute the same with them"


def _still_good(
    setup: Setup, earlier: Mapping[str, Decision], key: str, asked: str
) -> Decision | None:
    """Return the decision of a checkpoint where it still holds."""
    decision = earlier.get(key)
    is_good = decision is not None and decision.answers(asked, _made_for(setup))
    return decision if is_good else None


def _made_for(setup: Setup) -> dict[str, Any]:
    return {
        "device": setup.parallelism.device.type,
        "processes": setup.parallelism.ranks,
        "precision": choose_precision(setup.recipe.hardware),
    }


def _holds_for(setup: Setup) -> dict[str, str]:
    """Return what a proof holds for: the device, and the versions of what computes."""
    installed = versions()
    names = ("torch", "transformers", "peft", "flash-attn", "liger-kernel", "triton")
    computing = {name: installed[name] for name in names if name in installed}
    return {"device": device_name(setup.parallelism.device)} | computing


def _is_proven(had: Decision | None, holds_for: dict[str, str]) -> bool:
    return had is not None and had.proof.get("holds_for") == holds_for


def _refuse(had: Decision | None, asked: str | None, why: str, *, place: str, plain: str) -> None:
    """End the run where it was told to use, or has used so far, what it cannot."""
    if had is not None:
        raise RecipeError(
            f"so far this run has computed with {had.chosen}, and here it cannot: {why}",
            place=place,
            remedy=f"{plain} goes on without them, up to rounding",
        )
    if asked is not None:
        raise RecipeError(
            f"{asked} cannot be used here: {why}",
            place=place,
            remedy=f"auto or {plain}; both compute the same",
        )
