"""Which kernels a run computes with where PyTorch's own are not the only ones: found, tried on the model, said, kept for --resume.

All of them compute the same up to rounding, and none is believed to: see ``models/flash.py`` and ``models/liger.py``.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.errors import RecipeError
from lmkit.fast.packing import Packing
from lmkit.recipe.schema import Hardware
from lmkit.run import versions
from lmkit.train.device import choose_precision
from lmkit.train.parallel import largest
from lmkit.train.sharding import is_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator

TRIED_ON = ("cuda",)
SDPA, FLASH = "SDPA", "FlashAttention"
TORCH, LIGER = "PyTorch's", "Liger's"


def choose_attention(
    hardware: Hardware,
    model: Any,
    accelerator: Accelerator,
    packing: Packing | None,
    known: dict[str, Any],
    *,
    longest: int,
) -> tuple[dict[str, Any], Packing | None]:
    """The attention of rows that texts share; the same on all ranks.

    Batches with one text a row, evaluation and prediction stay with SDPA, which needs no mask where there is no padding.

    Args:
        model: on the device, with what is trained.
        packing: how SDPA takes such rows; None: no row is shared.
        known: what a checkpoint kept; still good for the same wish on the same device.
        longest: tokens of the longest text.

    Returns:
        What was decided, under ``on``, and ``why``; and the packing with it.

    Raises:
        RecipeError: ``flash``, or what a resumed run had, cannot be used.
    """
    wanted = _wanted(hardware.attention, hardware, accelerator)
    kept = known.get("on") if {key: known.get(key) for key in wanted} == wanted else None
    if kept == SDPA:
        return known, packing
    chosen, why, proof = None, "the recipe says so", _proof(accelerator)
    if hardware.attention != "sdpa":
        problem = _without_flash(wanted, model, packing)
        if problem is None:
            assert packing is not None
            again = kept is not None and known.get("proof") == proof
            repeatable = (
                hardware.attention == "auto" and kept is None
            )  # a run that goes on had it as it is
            chosen, problem = _proven(
                model, accelerator, packing, kept, longest, repeatable=repeatable, again=again
            )
        why = problem or "shown to compute what SDPA computes on this model"
    if chosen is None:
        _refuse(
            kept,
            FLASH if hardware.attention == "flash" else None,
            why,
            "hardware.attention",
            "sdpa",
        )
    found = wanted | {
        "on": SDPA if chosen is None else f"{FLASH}, {getattr(chosen.kernel, 'name', '')}",
        "why": why,
        "proof": proof,
    }
    if hardware.attention == "auto" and accelerator.device.type in TRIED_ON and packing is not None:
        console.say(f"attention of shared rows: {found['on']}; {why}")
    return found, chosen or packing


def _without_flash(wanted: dict[str, Any], model: Any, packing: Packing | None) -> str | None:
    """Why FlashAttention is not tried; None: it is."""
    if wanted["device"] not in TRIED_ON:
        return "it needs a GPU"
    if packing is None:
        return "texts share no rows, and without a mask SDPA has a kernel as fast"
    if wanted["precision"] == "fp32":
        return "it computes in bf16 or fp16, and this run in fp32"
    return (
        "the weights are in parts, and no process can try it alone" if is_sharded(model) else None
    )


def _proven(
    model: Any,
    accelerator: Accelerator,
    packing: Packing,
    kept: str | None,
    longest: int,
    *,
    repeatable: bool,
    again: bool,
) -> tuple[Packing | None, str | None]:
    """The packing with the first kernel that no process refutes, or None and why there is none."""
    from lmkit.fast.flash import kernels, refuted

    problems = []
    for name, kernel in kernels().items():
        if kept not in (None, f"{FLASH}, {name}"):
            continue
        if isinstance(kernel, str):
            other, problem = packing, kernel
        else:
            other = replace(packing, kernel=kernel)
            problem = refuted(  # type: ignore[assignment]
                model,
                other,
                longest=longest,
                precision=accelerator.autocast,
                repeatable=repeatable,
                again=again,
            )
        if not largest(accelerator, [float(problem is not None)])[0]:
            return other, None
        problems.append(f"{name} {problem or 'cannot be used by another process'}")
    return None, "; ".join(problems)


def choose_kernels(
    hardware: Hardware, model: Any, accelerator: Accelerator, known: dict[str, Any]
) -> tuple[dict[str, Any], ExitStack]:
    """The kernels of norms and gated layers; the same on all ranks.

    Args, Raises: as above.

    Returns:
        What was decided, under ``on``, and ``why``; and what makes the modules again what they were, when it is closed.
    """
    wanted = _wanted(hardware.kernels, hardware, accelerator)
    kept = known.get("on") if {key: known.get(key) for key in wanted} == wanted else None
    if kept == TORCH:
        return known, ExitStack()
    modules, why, proof = ExitStack(), "the recipe says so", _proof(accelerator)
    is_fused, ways = (
        False,
        dict[str, int](
            known.get("ways", {}) if kept is not None and known.get("proof") == proof else {}
        ),
    )
    if hardware.kernels != "torch":
        is_fused, modules, why = _fused(wanted, model, accelerator, ways)
    if not is_fused:
        _refuse(
            kept, LIGER if hardware.kernels == "liger" else None, why, "hardware.kernels", "torch"
        )
    found = wanted | {"on": LIGER if is_fused else TORCH, "why": why, "proof": proof, "ways": ways}
    if hardware.kernels == "auto" and accelerator.device.type in TRIED_ON:
        console.say(f"kernels of norms and gated layers: {found['on']}; {why}")
    return found, modules


def _fused(
    wanted: dict[str, Any], model: Any, accelerator: Accelerator, ways: dict[str, int]
) -> tuple[bool, ExitStack, str]:
    """Whether Liger's kernels are in place on all processes, what takes them back, and why."""
    from lmkit.fast.liger import fuse, liger_kernels

    problem = None
    if wanted["device"] not in TRIED_ON:
        problem = "they need a GPU"
    elif is_sharded(model):
        problem = "the weights are in parts, and no process can try them alone"
    if problem is not None:
        return False, ExitStack(), problem
    kernels = liger_kernels()
    if isinstance(kernels, str):
        modules, problem, parts = ExitStack(), kernels, ""
    else:
        modules, problem, parts = fuse(model, kernels, precision=accelerator.autocast, ways=ways)
    if largest(accelerator, [float(problem is not None)])[0]:
        modules.close()
        return False, modules, problem or "another process cannot use them"
    return True, modules, f"{parts} are shown to compute the same with them"


def _wanted(asked: str, hardware: Hardware, accelerator: Accelerator) -> dict[str, Any]:
    """What a decision is made for."""
    return {
        "asked": asked,
        "device": accelerator.device.type,
        "processes": accelerator.num_processes,
        "precision": choose_precision(hardware),
    }


def _proof(accelerator: Accelerator) -> dict[str, str]:
    """What a proof holds for: the device, and the versions of what computes."""
    import torch

    found = versions()
    device = (
        torch.cuda.get_device_name(accelerator.device)
        if accelerator.device.type == "cuda"
        else accelerator.device.type
    )
    names = ("torch", "transformers", "peft", "flash-attn", "liger-kernel", "triton")
    return {"device": device} | {name: found[name] for name in names if name in found}


def _refuse(kept: str | None, asked: str | None, why: str, place: str, plain: str) -> None:
    """End the run where it was told to use, or has used so far, what it cannot."""
    if kept is not None:
        problem = f"so far this run has computed with {kept}, and here it cannot: {why}"
        raise RecipeError(
            problem, place=place, remedy=f"{plain} goes on without them, up to rounding"
        )
    if asked is not None:
        raise RecipeError(
            f"{asked} cannot be used here: {why}",
            place=place,
            remedy=f"auto or {plain}; both compute the same",
        )
