"""The fast paths that there are, and which of them a model is computed with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from lmkit.fast.path import FastPath

if TYPE_CHECKING:
    import torch


def paths() -> list[FastPath]:
    """Return the fast paths that any model may have, in the order in which they are applied."""
    from lmkit.fast.attention import CpuAttention
    from lmkit.fast.dropout import FastDropout

    return [CpuAttention(), FastDropout()]


@contextmanager
def computed_faster(model: Any, device: torch.device) -> Iterator[None]:
    """Apply the paths that are available."""
    with ExitStack() as stack:
        for path in paths():
            if path.available(model, device) is None:
                stack.enter_context(path.applied(model))
        yield
