"""Two ways to compute a model, compared: what it makes of a few tokens, and the gradients that reach its embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from lmkit.models.trials import TOLERANCE, in_evaluation

if TYPE_CHECKING:
    import torch

    from lmkit.batch import Batch
    from lmkit.fast.path import FastPath

Precision = Callable[[], AbstractContextManager[Any]]  # autocast as in training
ROUNDING = 2.0  # times the error that the plain way makes in the same precision


def in_fp32(model: Any) -> AbstractContextManager[Any]:
    """Without autocast."""
    import torch

    return torch.autocast(next(model.parameters()).device.type, enabled=False)


def farther(exact: torch.Tensor, plain: torch.Tensor, found: torch.Tensor) -> str | None:
    """By how much ``found`` is farther from what is exact than the plain way in the same precision; None: it is about as near."""
    scale = exact.norm()
    error, allowed = (found - exact).norm(), ROUNDING * (plain - exact).norm() + TOLERANCE * scale
    if error <= allowed:
        return None
    return f"{error / scale:.1g} of the norm, where {allowed / scale:.1g} is rounding"


def states_and_gradients(
    model: Any, states: Callable[[], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states, and the gradients that a weighted sum of them has at what the embeddings gave; both in fp32.

    Args:
        model: its input embeddings are called by ``states``.
    """
    import torch

    with embedded(model) as leaves, torch.enable_grad():
        found = states().float()
        weights = torch.linspace(-100, 100, found.numel(), device=found.device).view_as(found).sin()
        gradients = torch.autograd.grad((found * weights).sum(), leaves)
    return found.detach(), torch.cat([gradient.float().flatten() for gradient in gradients])


def same_on(path: FastPath, model: Any, batches: Sequence[Batch]) -> str | None:
    """Prove that a path computes the logits and gradients that this model has without it.

    It is done in evaluation mode, for nobody draws twice alike, and in the precision that is around it.

    Args:
        batches: on the model's device. Where the path lays out rows otherwise, all their tokens count.

    Returns:
        None where they are the same to rounding, else by how much they are not.
    """

    with in_evaluation(model):
        for batch in batches:
            plain = _logits_and_gradients(model, batch)
            with path.applied(model):
                fast = _logits_and_gradients(model, path.transform(batch))
            for what, one, other in zip(("logits", "gradients"), plain, fast, strict=True):
                if problem := farther(one, one, other):
                    return f"computes other {what}, by {problem}"
    return None


def _logits_and_gradients(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the tokens, and the gradients that a weighted sum of them has at the weights."""
    import torch

    with torch.enable_grad():
        logits = model(**batch.inputs).logits.float()
        is_there = batch.inputs["attention_mask"].bool()
        if logits.shape[:2] == is_there.shape:
            logits = logits[is_there]
        weights = torch.arange(logits.numel(), device=logits.device).view_as(logits).sin()
        learned = [weight for weight in model.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad((logits * weights).sum(), learned, allow_unused=True)
    reached = [gradient.float().flatten() for gradient in gradients if gradient is not None]
    return logits.detach(), torch.cat(reached)


@contextmanager
def embedded(model: Any) -> Iterator[list[torch.Tensor]]:
    """While active, what the embeddings give is a leaf whose gradient can be asked for, whether they are trained or not."""
    leaves: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        yield leaves
    finally:
        handle.remove()
