"""FlashAttention for rows that several texts share: each text alone, and no mask (Dao 2023).

SDPA needs a mask for such rows, and with one PyTorch has its memory-efficient kernel only, which computes all of the row. Kernels
for texts of various lengths compute no more than each text. They exist on GPUs alone, and round as bf16 or fp16 does; so that
nothing else can be learned, ``refuted`` looks at what they compute on the model at hand before they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from lmkit.errors import first_line
from lmkit.fast.packing import Packing
from lmkit.heads import unwrap

NAME = "lmkit_flash"  # of the attention, to transformers


@dataclass(frozen=True)
class Kernel:
    """An attention over texts that follow one another.

    Args:
        name: to the user.
        attend: queries, keys and values ``(tokens, heads, width)``, the number of the first token of each text and of the end
            ``(texts + 1,)`` in int32, tokens of the longest text; by name ``causal``, ``window`` (tokens to either side, None:
            all), ``scale`` (None: by the width) and ``dropout``. Returns ``(tokens, heads, width)``.
    """

    name: str
    attend: Callable[..., torch.Tensor]
    experimental: ClassVar[bool] = True  # none of them has run on a GPU


@dataclass(frozen=True)
class _Rows:
    """What the attention of the pass that runs has to know."""

    packing: Packing
    tokens: int  # of all rows, padding included
    starts: torch.Tensor
    longest: int
    before: str  # the model's attention for all else
    windows: list[bool]  # whether each call so far was for a layer with a sliding window


_rows: list[
    _Rows
] = []  # a list in place of a context variable: recomputed layers run in the thread of the backward pass


def kernels() -> dict[str, Kernel | str]:
    """Those that may be there, the first ones first: a kernel, or why there is none."""
    return {"PyTorch's": _torchs(), "flash-attn's": _flash_attns()}


def _torchs() -> Kernel | str:
    import inspect

    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return "comes with a later version of torch"
    if not {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys():
        return "needs a later version of torch"

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        longest: int,
        **options: Any,
    ) -> torch.Tensor:
        if options["dropout"]:
            raise ValueError("has no dropout, and this model's attention has")
        groups = query.shape[1] != key.shape[1]
        found: Any = varlen_attn(
            query,
            key,
            value,
            starts,
            starts,
            longest,
            longest,
            scale=options["scale"],
            window_size=_sides(options["causal"], options["window"]),
            enable_gqa=groups,
        )
        return cast(torch.Tensor, found)

    return Kernel("PyTorch's", attend)


def _flash_attns() -> Kernel | str:
    try:
        from flash_attn import flash_attn_varlen_func
    except Exception as error:  # of a package that is broken, and not wanted by name
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == "flash_attn"
        return (
            "is not installed (pip install flash-attn)"
            if is_missing
            else f"cannot be loaded: {first_line(error)}"
        )

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        longest: int,
        **options: Any,
    ) -> torch.Tensor:
        found: Any = flash_attn_varlen_func(
            query,
            key,
            value,
            starts,
            starts,
            longest,
            longest,
            dropout_p=options["dropout"],
            softmax_scale=options["scale"],
            causal=options["causal"],
            window_size=_sides(options["causal"], options["window"]),
            deterministic=True,
        )
        return cast(torch.Tensor, found)

    return Kernel("flash-attn's", attend)


def _sides(causal: bool, window: int | None) -> tuple[int, int]:
    """Tokens before and behind that a token sees; -1: all."""
    reach = -1 if window is None else window
    return reach, 0 if causal else reach


@contextmanager
def flash_rows(model: Any, packing: Packing, segments: torch.Tensor) -> Iterator[_Rows]:
    """While active, the attention of the model is the packing's kernel, over rows of these segments.

    Args:
        segments: ``(rows, length)``, numbers of the texts; a run of one number is a text, padding is one too.
    """
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    starts = torch.cat(
        [begins.flatten().nonzero()[:, 0], torch.tensor([segments.numel()], device=segments.device)]
    )
    config = unwrap(model).config
    rows = _Rows(
        packing,
        segments.numel(),
        starts.to(torch.int32),
        int(starts.diff().max()),
        config._attn_implementation,
        [],
    )
    config._attn_implementation = NAME
    _rows.append(rows)
    try:
        yield rows
    finally:
        _rows.pop()
        config._attn_implementation = rows.before


@contextmanager
def with_masks(model: Any) -> Iterator[None]:
    """While active, a pass of other texts in between has the model's attention as it was."""
    config = unwrap(model).config
    now = config._attn_implementation
    if now == NAME:
        config._attn_implementation = _rows[-1].before
    try:
        yield
    finally:
        config._attn_implementation = now


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """``(rows, heads, length, width)`` each -> ``(rows, length, heads, width)``."""
    rows, packing = _rows[-1], _rows[-1].packing
    added = (options.get(name) for name in ("softcap", "s_aux", "position_bias"))
    if any(each is not None for each in (mask, *added)):
        raise ValueError("knows neither masks nor what this model adds to its scores")
    shape = query.shape[0], query.shape[2]
    if shape != (key.shape[0], key.shape[2]) or shape[0] * shape[1] != rows.tokens:
        raise ValueError("knows no attention to other texts")
    is_sliding = options.get("sliding_window") is not None
    rows.windows.append(is_sliding)
    device = value.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    flat = (states.transpose(1, 2).flatten(0, 1).to(dtype) for states in (query, key, value))
    assert packing.kernel is not None
    found = packing.kernel.attend(
        *flat,
        rows.starts,
        rows.longest,
        causal=packing.causal,
        window=packing.window if is_sliding else None,
        scale=options.get("scaling"),
        dropout=options.get("dropout", 0.0),
    )
    return found.view(*shape, *found.shape[1:]), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Make no mask: the kernel is told where the texts begin."""


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _no_mask)
