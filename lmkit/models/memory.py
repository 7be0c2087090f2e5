"""What to do when memory ends: recognise it, give back what is cached, and compute in smaller parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator, or PyTorch's allocator on the CPU, had no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(
        error
    )


def free_cached_memory() -> None:
    """Give back what tensors that are gone still hold: on the accelerator, and of the process with glibc."""
    import ctypes
    import gc
    import sys

    import torch

    gc.collect()  # an exception and its frames may refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and (
        trim := getattr(ctypes.CDLL(None), "malloc_trim", None)
    ):  # musl has none
        trim(0)


def keep_freed_memory() -> None:
    """Let glibc keep what tensors have freed for the next ones, in place of giving it back to the system.

    A step makes and frees the same hundreds of megabytes as the one before. New pages cost a microsecond each, to be found and
    cleared: in short steps of small models a tenth of the time. It holds for the whole process, which stays as large as its largest
    step made it, until ``free_cached_memory`` gives back what is whole pages.
    """
    import ctypes
    import sys

    if sys.platform == "linux" and (
        choose := getattr(ctypes.CDLL(None), "mallopt", None)
    ):  # musl has none
        choose(-4, 0)  # M_MMAP_MAX: large blocks, too, come from the heap
        choose(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: whose end stays


def in_parts(compute: Callable[[Sequence[int]], list[T]], numbers: Sequence[int]) -> list[T]:
    """The results of all numbers, in order: at once, or where memory ends in halves.

    Raises:
        RuntimeError: there is no memory for a single one.
    """
    try:
        return compute(numbers)
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(numbers) < 2:
            raise
    free_cached_memory()
    half = len(numbers) // 2
    return in_parts(compute, numbers[:half]) + in_parts(compute, numbers[half:])
