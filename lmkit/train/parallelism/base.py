"""The questions that training asks about processes; each way of spreading a model answers all of them.

Other code never tests which class it has. Where behaviour must differ, it asks ``computes_alone``, ``saves`` or
``keeps``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lmkit.batch import Batch
from lmkit.recipe.schema import Recipe

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

T = TypeVar("T")
Parameters = Sequence["torch.nn.Parameter"]


class Parallelism(Protocol):
    """How a model is spread over processes.

    Attributes:
        accelerator: precision and device.
        computes_alone: a process may run passes that the others do not run.
        is_sharded: for the manifest; nothing is decided by it.
    """

    accelerator: Accelerator
    computes_alone: bool
    is_sharded: bool

    @property
    def rank(self) -> int: ...
    @property
    def ranks(self) -> int: ...
    @property
    def is_first(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...
    def describe(self) -> str | None:
        """Return the line for the terminal, or None for a single process."""

    def check(self, recipe: Recipe, model: Any) -> None:
        """Refuse settings that cannot be spread so (RecipeError)."""

    def check_repeatable(self, step: int, budget: int) -> None:
        """Refuse to repeat a step whose memory ended, where the other processes wait within it (TrainingStopped)."""

    # a model and its optimizer
    def prepare(self, model: Any) -> Any:
        """Move the model to the device, in the run's precision, with the first process's weights."""

    def prepare_optimizer(self, optimizer: Any) -> Any: ...
    def whole(self, model: Any) -> AbstractContextManager[None]:
        """Give every process all weights, to call the model without the others."""

    def gather_model(self, model: Any, build: Callable[[], Any], *, on_device: bool) -> Any:
        """Return the trained model in one piece on every process.

        Args:
            build: makes a model of the same kind.
            on_device: it will be evaluated there.
        """

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the run's precision while active."""

    # what processes agree on
    def total(self, numbers: Sequence[float]) -> list[float]:
        """Sum each number over all processes."""

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """Return the largest of each number over all processes."""

    def any(self, mine: bool) -> bool:
        """Return whether it is so on any process."""

    def first_rank_says(self, value: T) -> T:
        """Return the first process's value on every process."""

    def gather(self, values: list[T]) -> list[T]:
        """Return the values of all processes, in the order of their ranks."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes."""

    def wait(self) -> None:
        """Return when every process is here."""

    def track(self, values: Mapping[str, Any], *, step: int) -> None:
        """Hand numbers to the trackers of ``logging.to``."""

    def end(self) -> None:
        """Leave the trackers and the other processes."""

    # a step
    def backward(self, loss: torch.Tensor) -> None: ...
    def same_number(self, micro: list[Batch], idle: Callable[[], Batch]) -> list[Batch]:
        """Fill up the micro-batches of a step with idle ones, where all processes make as many passes."""

    def gradients_present(self, parameters: Parameters) -> list[float]:
        """Return 1.0 for each parameter that this process computed a gradient for; empty where nobody asks."""

    def reduce(self, parameters: Parameters, present: Sequence[float]) -> None:
        """Replace each gradient by its sum over all processes.

        Args:
            present: whether any process has a gradient for the parameter; the same on all of them.
        """

    def clip(self, optimizer: Any, parameters: Parameters, limit: float) -> torch.Tensor:
        """Bring the norm of all gradients down to ``limit``; return what it was."""

    # a checkpoint
    @property
    def saves(self) -> bool:
        """Return whether this process writes checkpoints."""

    def writing_group(self) -> Any:
        """Make a group in which processes agree on a checkpoint; None where the first one writes alone."""

    def keeps(self, tensor: Any) -> bool:
        """Return whether this process writes the tensor, where it writes."""

    def local(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this process's rows, sharing their memory."""

    def rows_of(self, parameter: Any) -> tuple[int, int] | None:
        """Return the half-open range of rows that this process has of a parameter; None: all of it."""

    def like(self, rows: torch.Tensor, parameter: Any) -> torch.Tensor:
        """Return these rows as a tensor that is spread as the parameter is."""
