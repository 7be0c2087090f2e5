"""transformers is the same, however it was imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import transformers
from transformers.utils.import_utils import define_import_structure

from lmkit.models.imports import models_in


def test_the_list_of_models_is_the_one_that_transformers_makes() -> None:
    folder = Path(transformers.__file__).parent / "models"
    found = models_in(define_import_structure(folder, prefix="models"))
    assert {key: names for key, names in found.items() if names} == define_import_structure(
        str(folder / "__init__.py")
    )


def test_a_solver_that_is_put_off_solves_all_the_same() -> None:
    code = """
import sys
from lmkit.models.imports import import_modeling
import_modeling()
import transformers
print("scipy.optimize" in sys.modules, transformers.models.bert.BertConfig().model_type)
from transformers.loss.loss_for_object_detection import linear_sum_assignment
rows, columns = linear_sum_assignment([[4, 1], [2, 0]])
import scipy.optimize
print(rows.tolist(), columns.tolist(), scipy.optimize.linear_sum_assignment is not linear_sum_assignment)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found == "False bert\n[0, 1] [1, 0] True\n"


def test_a_module_that_needs_the_solver_at_once_gets_it() -> None:
    """As of a version of transformers that makes a class, or a constant, of what it takes from SciPy."""
    code = """
import sys, types
from lmkit.models import imports
tried = []
class Loader:
    def find_spec(self, name, path=None, target=None):
        return imports.importlib.machinery.ModuleSpec(name, self) if name == "needs_solver" else None
    def create_module(self, spec): return None
    def exec_module(self, module):
        from scipy.optimize import OptimizeResult
        tried.append(isinstance(OptimizeResult, type))
        class Result(OptimizeResult, dict): pass
sys.meta_path.insert(0, Loader())
imports.MODELING = "needs_solver"
imports.import_modeling()
print(tried, "scipy.optimize" in sys.modules, "needs_solver" in sys.modules)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found == "[False, True] True True\n"


def test_objects_of_a_program_that_calls_lmkit_stay_in_the_garbage_collector_s_view() -> None:
    code = """
import gc, sys
from lmkit import console
from lmkit.models.imports import _to_stay
start = gc.get_freeze_count()
with _to_stay(): pass
before = gc.get_freeze_count() - start
console.own_process()
with _to_stay(): pass
print(before, gc.get_freeze_count() > start, gc.isenabled())
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found == "0 True True\n"
