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
    assert {key: names for key, names in found.items() if names} == define_import_structure(str(folder / "__init__.py"))


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
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "False bert\n[0, 1] [1, 0] True\n"
