"""A frozen base in 4 or 8 bits under an adapter (QLoRA), through the optional extra ``lmkit[qlora]``."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from lmkit.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_quantization(bits: str) -> None:
    """Raise a RecipeError where the package or the hardware is missing; torch is imported only where the package is there."""
    place, remedy = f"lora.quantize: {bits}", "or lora.quantize=null for the base in full precision"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(
            "needs the package bitsandbytes, which is not installed",
            place=place,
            remedy=f"pip install 'lmkit[qlora]', {remedy}",
        )
    import torch

    if not torch.cuda.is_available():
        raise RecipeError(
            "needs a CUDA GPU, and torch finds none here",
            place=place,
            remedy=f"run it where there is one, {remedy}",
        )


def quantization(
    bits: str, model_class: str, config: PretrainedConfig, precision: str
) -> dict[str, Any]:
    """What ``from_pretrained`` takes to load a base in 4 bits (nf4 with double quantisation, Dettmers et al. 2023) or 8.

    Heads and poolers stay whole: they may be new, and are trained.
    """
    import torch
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, model_class).from_config(config)
    children = {name for name, _ in model.named_children()}
    heads = (
        children - {model.base_model_prefix} if model.base_model_prefix in children else {"lm_head"}
    )
    heads |= {name for name, _ in model.named_modules() if name.split(".")[-1] == "pooler"}
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    options: dict[str, Any] = {"load_in_8bit": True}
    if bits == "4bit":
        natural = (
            torch.bfloat16
            if precision == "auto" and torch.cuda.is_bf16_supported()
            else torch.float16
        )
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtypes.get(precision, natural),
        }
    chosen = transformers.BitsAndBytesConfig(**options, llm_int8_skip_modules=sorted(heads))
    return {"quantization_config": chosen, "device_map": {"": torch.cuda.current_device()}}
