"""torch and transformers, imported without work that is done twice, or that no model of lmkit's asks for: a fifth of every start."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from lmkit import console

MODELS, MODELING, SOLVER = "transformers.models", "transformers.modeling_utils", "scipy.optimize"


def import_torch() -> None:
    if "torch" not in sys.modules:
        with _to_stay():
            importlib.import_module("torch")


def import_models() -> None:
    """The list of transformers' models, without reading their source files a second time."""
    if MODELS not in sys.modules:
        with _to_stay(), _listed_once():
            importlib.import_module(MODELS)


def import_modeling() -> None:
    """What every model imports, without SciPy's solvers, which the losses of object detection ask for."""
    import_models()
    if MODELING not in sys.modules:
        with _to_stay():
            try:
                with _late_solver():
                    importlib.import_module(MODELING)
                    importlib.import_module("accelerate")
            except (
                ImportError,
                TypeError,
                AttributeError,
            ):  # something needs more of the solver than to call it later
                importlib.import_module(MODELING)
                importlib.import_module("accelerate")


@contextmanager
def _to_stay() -> Iterator[None]:
    """What is imported is not garbage: nothing looks for any meanwhile, nor, in the command's own process, among it later.

    A process that lmkit is a part of keeps objects of its own, which are not lmkit's to exempt from the search.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if console.owns_process():
            gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def _listed_once() -> Iterator[None]:
    """``import transformers`` reads all models for what they export, and ``transformers.models`` asks for the same again."""
    import transformers
    from transformers.utils import import_utils

    known = getattr(import_utils, "define_import_structure", None)
    if known is None:  # another version, which may list them otherwise
        yield
        return

    def listed(module_path: Any, *arguments: Any, **options: Any) -> Any:
        if not (arguments or options) and module_path == str(
            Path(transformers.__file__).parent / "models" / "__init__.py"
        ):
            with suppress(TypeError, AttributeError):  # as above
                found = models_in(
                    known(Path(module_path).parent, prefix="models")
                )  # which it remembers
                if any(found.values()):
                    return found
        return known(module_path, *arguments, **options)

    import_utils.define_import_structure = listed
    try:
        yield
    finally:
        import_utils.define_import_structure = known


def models_in(structure: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Of what transformers exports, that which is below ``models``."""
    mark = "models."
    return {
        needed: {
            name.removeprefix(mark): objects
            for name, objects in found.items()
            if name.startswith(mark)
        }
        for needed, found in structure.items()
    }


@contextmanager
def _late_solver() -> Iterator[None]:
    """While active what is taken from ``scipy.optimize`` is a function that imports it when it is called."""
    if SOLVER in sys.modules or find_spec("scipy") is None:
        yield
        return
    late = ModuleType(SOLVER)
    late.__getattr__ = _late  # type: ignore[method-assign]
    sys.modules[SOLVER] = late
    try:
        yield
    finally:
        if sys.modules.get(SOLVER) is late:
            del sys.modules[SOLVER]


def _late(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(SOLVER), name)(*arguments, **options)

    return call
