"""Linear layer and cross-entropy in one: the (tokens x vocabulary) logits never exist whole.

Logits are made, and turned into their own gradient, a few tokens at a time; the gradients of hidden states, weight and bias
are added up on the way, in the forward pass, so nothing is computed twice and nothing of the vocabulary's size is kept for
the backward pass (as Liger does in Triton: Hsu et al. 2024, arXiv:2410.10989).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lmkit.batch import IGNORE

CHUNK = 256  # tokens: on a CPU their logits, probabilities and gradient pass through its caches
GPU_NUMBERS = 2**26  # logits at a time on a GPU: enough to fill it
# Chunks whose gradients, rounded to 16 bits, make one product for the weight. Adding a product to the sum in fp32 takes about a
# quarter as long as the product of one chunk; two chunks share the addition.
GROUP = 2
SLAB = 2048  # rows of the weight whose product is added at a time: it stays in a core's cache


@dataclass(frozen=True)
class Options:
    """How the loss is computed.

    Args:
        label_smoothing: share of the target that is spread over the vocabulary.
        scale: what the products of hidden states and weight are multiplied by.
        dtype: of the matrix products, default the hidden states' own. Everything else is at least fp32: softmax, losses,
            and the sum of the weight's gradient.
        chunk: tokens at a time.
    """

    label_smoothing: float = 0.0
    scale: float = 1.0
    dtype: torch.dtype | None = None
    chunk: int | None = None


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    options: Options = Options(),  # frozen
) -> torch.Tensor:
    """Sum the cross-entropies of ``scale * hidden @ weight.T + bias``, in nats; as torch's with ``reduction="sum"``.

    Args:
        hidden: ``(tokens, width)``.
        weight: ``(vocabulary, width)``.
        bias: ``(vocabulary,)`` or None.
        labels: ``(tokens,)``, -100 where nothing counts.

    Returns:
        A number in fp32, or fp64 where the hidden states are.
    """
    counts = labels != IGNORE
    if not counts.all():
        hidden, labels = hidden[counts], labels[counts]
    chunk = options.chunk
    if chunk is None:
        chunk = CHUNK if hidden.device.type == "cpu" else max(CHUNK, GPU_NUMBERS // len(weight))
    arguments = (
        labels,
        options.label_smoothing,
        options.scale,
        options.dtype or hidden.dtype,
        chunk,
        torch.is_grad_enabled(),
    )
    loss: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, *arguments)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        smoothing: float,
        scale: float,
        dtype: torch.dtype,
        chunk: int,
        wanted: bool,
    ) -> torch.Tensor:
        needs_hidden, needs_weight, needs_bias = (
            wanted and needed for needed in ctx.needs_input_grad[:3]
        )
        exact = torch.promote_types(hidden.dtype, torch.float32)
        vocabulary = len(weight)
        losses = torch.empty(len(labels), dtype=exact, device=hidden.device)
        d_hidden = torch.empty_like(hidden, dtype=exact) if needs_hidden else None
        d_weight = torch.zeros_like(weight, dtype=exact) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            given, projection = hidden.to(dtype), weight.to(dtype)  # once, not once per chunk
            # fp16 holds gradients only after the loss is scaled, and here it is not yet
            back = exact if dtype == torch.float16 else dtype
            back_given, back_projection = given.to(back), projection.to(back)
            # written anew by every chunk: fresh memory costs the system more time than the passes that fill it
            group = chunk * (
                GROUP if needs_weight and back != exact and hidden.device.type == "cpu" else 1
            )
            wide = torch.empty(
                min(chunk, len(labels)), vocabulary, dtype=exact, device=hidden.device
            )
            narrow = (
                wide
                if dtype == exact
                else wide.new_empty(min(group, len(labels)), vocabulary, dtype=dtype)
            )
            for start in range(0, len(labels), chunk):
                here = slice(start, start + chunk)
                states, target = given[here], labels[here, None]
                behind = start % group if back != exact else 0
                logits, rounded = wide[: len(states)], narrow[behind : behind + len(states)]
                torch.mm(states, projection.T, out=rounded)
                if narrow is not wide:
                    logits.copy_(rounded)
                if scale != 1:
                    logits *= scale
                if bias is not None:
                    logits += bias
                logs = torch.log_softmax(logits, -1, out=logits)
                losses[here] = -(1 - smoothing) * logs.gather(1, target)[:, 0]
                if smoothing:
                    losses[here] -= smoothing * logs.mean(-1)
                if not (needs_hidden or needs_weight or needs_bias):
                    continue
                # the gradient of the logits: probabilities less the target
                gradient = logs.exp_()
                gradient.scatter_add_(1, target, gradient.new_full(target.shape, smoothing - 1))
                if smoothing:
                    gradient -= smoothing / vocabulary
                if d_bias is not None:
                    d_bias += gradient.sum(0)
                if scale != 1:
                    gradient *= scale
                if back != exact:
                    gradient = rounded.copy_(gradient)
                if d_hidden is not None:
                    d_hidden[here] = gradient @ back_projection
                if d_weight is None:
                    continue
                if back == exact:
                    d_weight.addmm_(gradient.T, back_given[here])
                elif (end := start + len(states)) % group == 0 or end == len(labels):
                    _add_products(
                        d_weight, narrow[: behind + len(states)], given[start - behind : end]
                    )
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.types = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return losses.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        scaled = (
            None if made is None else (made * gradient).to(dtype)
            for made, dtype in zip(ctx.saved_tensors, ctx.types, strict=True)
        )
        return (*scaled, None, None, None, None, None, None)


def _add_products(total: torch.Tensor, gradients: torch.Tensor, states: torch.Tensor) -> None:
    """``total += gradients.T @ states``, whose products are rounded to their own type; without a second matrix of that size."""
    rows = SLAB if total.device.type == "cpu" else len(total)
    for start in range(0, len(total), rows):
        total[start : start + rows] += gradients[:, start : start + rows].T @ states
