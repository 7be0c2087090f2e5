"""Dropout (Srivastava et al. 2014) on CPUs: four decisions from each random number, in place of one.

PyTorch draws a number for every element, one after the other on a single core, which can take as long as the layers between.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

RESOLUTION = 2**16  # a rate is kept to within half of its inverse
_functions: Any = torch.nn.functional
_plain = _functions.dropout
_lock, _depth = threading.Lock(), 0  # how many drawn_faster are active


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor, rate: float) -> torch.Tensor:
        dropped = round(rate * RESOLUTION)
        numbers = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        # ones and zeros of the values' own type: comparing and multiplying is vectorised then, choosing by booleans is not
        kept = torch.empty(values.shape, dtype=values.dtype)
        torch.ge(
            numbers.view(torch.int16)[: values.numel()].view(values.shape),
            dropped - RESOLUTION // 2,
            out=kept,
        )
        context.save_for_backward(kept)
        context.scale = RESOLUTION / (RESOLUTION - dropped) if dropped < RESOLUTION else 0.0
        return (values * kept).mul_(context.scale)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (kept,) = context.saved_tensors
        return (gradients[0] * kept).mul_(context.scale), None


def dropout(values: torch.Tensor, rate: float) -> torch.Tensor:
    """Zeros with this probability, the rest scaled so that the mean stays; draws from PyTorch's own generator."""
    if rate == 0:
        return values
    if values.device.type != "cpu":
        return torch.dropout(values, rate, True)
    dropped: torch.Tensor = _Dropout.apply(values, rate)  # type: ignore[no-untyped-call]
    return dropped


def _draw(
    input: torch.Tensor,  # noqa: A002
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> torch.Tensor:
    if inplace:
        return _plain(input, p, training, inplace)  # type: ignore[no-any-return]
    return dropout(input, p) if training else input


@contextmanager
def drawn_faster(device: torch.device) -> Iterator[None]:
    """While active, ``torch.nn.functional.dropout`` draws as above on a CPU: layers call it, and models that have none (Marian, BART).

    It is the function of all threads, until the last that asked for it is done.
    """
    if device.type != "cpu":
        yield
        return
    _change(1)
    try:
        yield
    finally:
        _change(-1)


def _change(by: int) -> None:
    global _depth
    with _lock:
        _depth += by
        _functions.dropout = _draw if _depth else _plain
