"""The three questions that every fast path answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from lmkit.batch import Batch


class FastPath(Protocol):
    """A faster way to compute a model, which changes nothing of what is computed but its rounding.

    Args:
        name: for people and for the manifest.
        experimental: it has never run on the hardware that it is for.
    """

    name: str
    experimental: bool

    def available(self, model: Any, device: torch.device) -> str | None:
        """Return None where this model can be computed so, else the reason."""

    def transform(self, batch: Batch) -> Batch:
        """Lay out the rows of a batch as this path reads them."""

    def applied(self, model: Any) -> AbstractContextManager[Any]:
        """Let this model be computed so while active, and leave nothing behind."""


@contextmanager
def has_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object an attribute of its own while active; what it had before comes back."""
    had, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
