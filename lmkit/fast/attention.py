"""Attention on CPUs, where PyTorch has no fused kernel with dropout, and a slow one for bf16 without a matrix unit; and of beams."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lmkit.batch import Batch
from lmkit.fast.dropout import dropout as drop
from lmkit.heads import unwrap

PLAIN = "sdpa"  # the attention of transformers that ours takes the place of
NAME, NAME_IN_FP32 = "lmkit_cpu", "lmkit_cpu_in_fp32"  # of ours, to transformers
# architectures that hand on keys and values of the cache as they are; each is tested
TAKE_BEAMS = ("bart", "marian", "mbart", "m2m_100")
_added = WeakTensorKeyDictionary()  # by mask: what _backwards_only made of it
_kernel: Any = getattr(
    torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None
)  # private: a later torch may be without it


class CpuAttention:
    """The path that computes a model's attention faster where it is differentiated on a CPU: the same function, other roundings.

    Args:
        in_fp32: compute in fp32 what arrives as bf16; None: where there is no AMX, without which the fused kernel's backward
            pass multiplies bf16 one number at a time.
    """

    name = "attention"
    experimental = False

    def __init__(self, *, in_fp32: bool | None = None):
        is_slow_in_bf16 = not torch.cpu._is_amx_tile_supported()
        self._name = NAME_IN_FP32 if (is_slow_in_bf16 if in_fp32 is None else in_fp32) else NAME

    def available(self, model: Any, device: torch.device) -> str | None:
        if device.type != "cpu":
            return "a GPU has kernels of its own"
        return None if _configs(model) else "the model's attention is not SDPA"

    def transform(self, batch: Batch) -> Batch:
        return batch

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        configs = _configs(model)
        for config in configs:
            config._attn_implementation = {"": self._name}  # this config, and none inside it
        try:
            yield model
        finally:
            for config in configs:
                config._attn_implementation = {"": PLAIN}


def _configs(model: Any) -> list[Any]:
    """Return the configs that tell parts of a model to look up SDPA among transformers' attention functions."""
    configs = {}
    for part in unwrap(model).modules():
        if not isinstance(part, PreTrainedModel) or part.config._attn_implementation != PLAIN:
            continue
        if part._can_set_attn_implementation() and not _asks_for_sdpa(type(part).__module__):
            configs[id(part.config)] = part.config
    return list(configs.values())


@cache
def _asks_for_sdpa(module: str) -> bool:
    """Tell whether a model's code does something else where its attention has another name."""
    code = inspect.getsource(sys.modules[module])
    return re.search(r"""_attn_implementation (==|!=|in|not in) .*["']sdpa["']""", code) is not None


def takes_beams(model: Any) -> bool:
    """Tell whether the decoder may attend to sources that are fewer than its rows.

    Each source is read by the same number of rows, which follow one another.
    """
    is_ours = model.config._attn_implementation in (NAME, NAME_IN_FP32)
    return is_ours and model.device.type == "cpu" and model.config.model_type in TAKE_BEAMS


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute what transformers' ``sdpa_attention_forward`` computes, with its arguments.

    Args:
        options: those of ``sdpa_attention_forward``, and ``in_fp32``.
    """
    in_fp32, rate = options.pop("in_fp32", False), options.get("dropout", 0.0)
    if len(query) > len(key) and query.shape[2] == 1:
        return _of_beams(module, query, key, value, mask, **options), None
    # checkpointed layers are computed twice and have to draw alike: both times with gradients, as use_reentrant=False does
    unknown = options.get("position_bias") is not None or options.get("softcap") is not None
    if value.device.type != "cpu" or not torch.is_grad_enabled() or unknown:
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0], None
    if rate and query.shape[1] == key.shape[1]:
        query, key = query.to(value.dtype), key.to(value.dtype)
        return _with_dropout(module, query, key, value, mask, **options), None
    if not in_fp32 or value.dtype != torch.bfloat16:
        return _fused(module, query, key, value, mask, **options), None
    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    with torch.autocast("cpu", enabled=False):
        attended = _fused(module, query.float(), key.float(), value.float(), mask, **options)
        return attended.to(value.dtype), None


for _name, _function in ((NAME, attend), (NAME_IN_FP32, partial(attend, in_fp32=True))):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, sdpa_mask)


def _of_beams(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options: Any,
) -> torch.Tensor:
    """Beams of a sentence are several queries to its source, which is read once.

    Args:
        query, mask: ``(rows, heads, 1, width)`` and ``(rows, 1, 1, length)``. key, value: ``(sources, heads, length, width)``.
    """
    rows, heads, _, width = query.shape
    beams = rows // len(key)
    together = query.view(len(key), beams, heads, width).transpose(1, 2)
    options |= {"is_causal": False, "dropout": 0.0}
    mask = None if mask is None else mask[::beams]
    found: torch.Tensor = sdpa_attention_forward(module, together, key, value, mask, **options)[0]
    return found.reshape(rows, 1, heads, width)


def _fused(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options: Any,
) -> torch.Tensor:
    """PyTorch's attention; where a mask hides all keys after a query, as of packed texts, its kernel is told and skips them.

    The public function takes a mask or ``is_causal``, its kernel both; no bit is another. The kernel checks nothing: what the
    public function would not give it (nothing at all, numbers that do not lie side by side) goes to the public function.
    """
    groups = query.shape[1] // key.shape[1]
    is_plain = (
        _kernel is None
        or torch.compiler.is_compiling()
        or options.get("dropout")
        or mask is None
        or not query.numel()
        or key.shape != value.shape
        or not query.dtype == key.dtype == value.dtype
        or any(each.stride(-1) != 1 for each in (query, key, value))
    )
    if is_plain or (added := _backwards_only(mask, query)) is None:
        found: torch.Tensor = sdpa_attention_forward(module, query, key, value, mask, **options)[0]
        return found
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    attended: torch.Tensor = _kernel(
        query, key, value, 0.0, True, attn_mask=added, scale=options.get("scaling")
    )[0]
    return attended.transpose(1, 2).contiguous()


def _backwards_only(mask: Any, query: torch.Tensor) -> torch.Tensor | None:
    """What is added to the scores in place of the mask, if it lets no query see a key after it; once for all layers."""
    if (
        mask.dtype != torch.bool
        or mask.dim() != 4
        or mask.shape[-2:] != (query.shape[2], query.shape[2])
    ):
        return None
    if mask not in _added:
        hides = not mask.triu(1).any()
        _added[mask] = torch.where(mask, 0.0, float("-inf")).to(query.dtype) if hides else None
    added: torch.Tensor | None = _added[mask]
    return None if added is None else added.to(query.dtype)


def _with_dropout(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options: Any,
) -> torch.Tensor:
    """Write attention out, with dropout; the mask is added, or False where none may look.

    Returns:
        ``(batch, length, heads, width)``, of states that are ``(batch, heads, length, width)``.
    """
    length, scale, is_causal = query.shape[2], options.get("scaling"), options.get("is_causal")
    if scale is None:
        scale = query.shape[-1] ** -0.5
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if mask is None and length > 1 and is_causal:
        mask = torch.ones(length, key.shape[2], dtype=torch.bool).tril()
    scores = query * scale @ key.transpose(-1, -2)
    if mask is not None and mask.dtype == torch.bool:
        # filling would pass over all heads, forward and backward; where nothing is hidden, 0 is added
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(
            ~mask, torch.finfo(scores.dtype).min
        )
    scores = scores if mask is None else scores + mask
    with torch.autocast(
        "cpu", enabled=False
    ):  # which would have softmax return fp32, to be rounded before the product
        shares = drop(scores.to(value.dtype).softmax(-1), options["dropout"])
    return (shares @ value).transpose(1, 2).contiguous()
