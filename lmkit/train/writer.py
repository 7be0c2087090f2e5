"""Checkpoints written beside training: copied at the step, written by a thread, one at a time."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.errors import is_full
from lmkit.run import Run
from lmkit.train.checkpoint import (
    checkpoint_steps,
    name_of,
    snapshot,
    write_checkpoint,
    write_parts,
)

if TYPE_CHECKING:
    from lmkit.train.parallelism.base import Parallelism


class Writer:
    """A writer of checkpoints of one run, beside training.

    A full disk does not end the run: it is said, the last good checkpoint stays, and the next one is tried.

    Where all processes write, they agree on the end of it in a group of their own, which training knows nothing of.

    Attributes:
        lost: steps whose checkpoint found no room on the disk.
    """

    def __init__(self, run: Run, parallelism: Parallelism) -> None:
        self.run, self.lost, self.parallelism = run, set[int](), parallelism
        self._group: Any = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Writer:
        self._group = self.parallelism.writing_group()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the pending write even after an error, but not on KeyboardInterrupt."""
        if self._thread is not None and (kind is None or issubclass(kind, Exception)):
            self._thread.join()
        if self._group is not None and (kind is None or issubclass(kind, Exception)):
            import torch

            torch.distributed.destroy_process_group(self._group)
            self._group = None

    def save(
        self,
        step: int,
        model: Any,
        optimizer: Any,
        state: dict[str, Any],
        then: Callable[[], object],
    ) -> None:
        """Copy weights, moments and state, and return; the files follow.

        Where the copy would take more than half of the free memory, the files are written here and now.

        Args:
            then: called once the checkpoint is in place; by the thread.

        Raises:
            whatever kept the checkpoint before from being written, a full disk excepted.
        """
        self.wait()
        size = (
            sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad) * 3
        )  # Adam has two moments
        beside = size < _free_memory() / 2
        if self._group is not None:
            beside = not self.parallelism.any(not beside)
        weights, moments = snapshot(model, optimizer, self.parallelism, copy=beside)
        needed = sum(tensor.nbytes for tensor in (*weights.values(), *moments.values()))

        def write() -> None:
            try:
                if self._group is None:
                    write_checkpoint(self.run, step, weights, moments, state)
                else:
                    write_parts(self.run, step, weights, moments, state, self._group)
                if console.is_first_process():
                    then()
            except BaseException as error:
                self._error = error
                if is_full(error):
                    self._error = None
                    self.lost.add(step)
                    self._say_full(step, needed)

        if beside:
            self._thread = threading.Thread(target=write, name=f"checkpoint {step}", daemon=True)
            self._thread.start()
        else:
            write()
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written; raise what went wrong meanwhile."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _say_full(self, step: int, needed: int) -> None:
        last = checkpoint_steps(self.run)
        stays = f"the one of step {last[-1]} stays" if last else "there is no other yet"
        folder = self.run.checkpoints
        free = shutil.disk_usage(self.run.path).free
        console.warn(
            f"{folder / name_of(step)}: the disk is full: this checkpoint needs {needed:,} bytes, {free:,} are free; "
            f"{stays}; training goes on, and the next checkpoint is tried"
        )


def _free_memory() -> int:
    import psutil  # Accelerate needs it, too

    return int(psutil.virtual_memory().available)
