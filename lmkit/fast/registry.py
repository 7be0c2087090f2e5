"""The fast paths that there are, and which of them a model is computed with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmkit.fast.path import FastPath

if TYPE_CHECKING:
    import torch

    from lmkit.batch import Batch
    from lmkit.fast.packing import Packing


@dataclass(frozen=True)
class FastPaths:
    """The paths that one model is computed with.

    Args:
        paths: in the order in which they are applied.
        reasons: why others are not used, by name.
    """

    paths: tuple[FastPath, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """Let this model be computed faster while active, in a forward and backward pass."""
        with ExitStack() as stack:
            for path in self.paths:
                stack.enter_context(path.applied(model))
            yield model

    def transform(self, batch: Batch) -> Batch:
        """Lay out a batch as the paths read it; while they are applied, and before the pass."""
        for path in self.paths:
            batch = path.transform(batch)
        return batch


def paths_for_training() -> list[FastPath]:
    """List the paths that make a forward and backward pass faster, whatever the data."""
    from lmkit.fast.attention import CpuAttention
    from lmkit.fast.dropout import FastDropout
    from lmkit.fast.token_loss import TokenLoss

    return [CpuAttention(), FastDropout(), TokenLoss()]


def paths_for_evaluation() -> list[FastPath]:
    """List the paths that make a pass without gradients faster; a search applies the attention by itself."""
    from lmkit.fast.search import Search
    from lmkit.fast.token_loss import TokenLoss

    return [TokenLoss(), Search()]


def choose_for_evaluation(model: Any, device: torch.device) -> FastPaths:
    """Try the paths of evaluation on a model, where it is computed."""
    return _choose(paths_for_evaluation(), model, device)


def choose_for_training(model: Any, device: torch.device, packing: Packing | None) -> FastPaths:
    """Try the paths of training on a model, where it is computed.

    Args:
        packing: how it takes several texts in a row, shown to be exact; None: each text has its own.
    """
    from lmkit.fast.unpadding import SharedRows

    candidates = paths_for_training()
    if packing is not None:
        candidates.append(SharedRows(packing))
    return _choose(candidates, model, device)


def _choose(candidates: Sequence[FastPath], model: Any, device: torch.device) -> FastPaths:
    chosen, reasons = [], {}
    for path in candidates:
        reason = path.available(model, device)
        if reason is None:
            chosen.append(path)
        else:
            reasons[path.name] = reason
    return FastPaths(tuple(chosen), reasons)
