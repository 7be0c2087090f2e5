"""The start of a process: imports of large libraries, which take most of the time until the first step."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from lmkit import console


@contextmanager
def importing() -> Iterator[None]:
    """Disable the garbage collector while libraries are imported, and freeze what was imported.

    Modules are no garbage, and looking for some among millions of their objects takes a third of the time. It is done in the
    command's own process alone: in somebody else's program the collector stays as it is.
    """
    if not console.owns_process() or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
