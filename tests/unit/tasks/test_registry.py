from __future__ import annotations

import subprocess
import sys

import pytest

from lmkit.errors import RecipeError
from lmkit.tasks import registry
from lmkit.tasks.registry import names, problem, problems, readers_of, real_name

HEAVY = "torch transformers tokenizers datasets sklearn scipy pyarrow"


def test_tasks_of_the_package_are_found_by_name() -> None:
    ours = {"mlm", "clm", "denoise", "classification", "ner", "translation"}
    assert ours <= set(names())
    for name in ours:
        assert problem(name).name == real_name(name) == name


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert real_name("clasification") is None
    with pytest.raises(RecipeError, match="did you mean 'classification'"):
        problem("clasification")


def test_a_folder_that_was_never_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())
    with pytest.raises(RecipeError, match=r"no task is installed.*\n.*pip install -e \."):
        registry._entries.__wrapped__()


def test_no_name_stands_for_two_tasks() -> None:
    taken: list[str] = []
    for solved in problems():
        taken += [solved.name, *solved.aliases, *solved.foreign_names]
    assert len(taken) == len(set(taken))


def test_keys_have_readers() -> None:
    assert readers_of("masking.span") == ("denoise",)
    assert readers_of("train.epochs") == ()  # all read it


def test_problems_are_loaded_without_heavy_libraries() -> None:
    code = f"""
import sys
from lmkit.recipe.schema import Recipe
from lmkit.tasks.registry import problems
for problem in problems():
    problem.fields(Recipe(task=problem.name))
    problem.measures
print([name for name in "{HEAVY}".split() if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
