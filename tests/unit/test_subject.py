"""The model of an evaluation: see also tests/unit/flow/test_repeat.py and tests/unit/tasks/test_tagging.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lmkit
from lmkit.errors import ModelError, RecipeError
from lmkit.run import Run
from lmkit.subject import Subject, find_subject


def test_an_evaluation_looks_its_subject_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def find(source: Any) -> Subject:
        asked.append(source)
        return Subject(None, None, Run(tmp_path))  # type: ignore[arg-type]

    monkeypatch.setattr("lmkit.subject.find_subject", find)
    monkeypatch.setattr("lmkit.flow.evaluation.evaluate_subject", lambda subject: None)
    assert lmkit.evaluate(Run("runs/x")).path == tmp_path
    assert asked == [Path("runs/x")]


def test_a_run_a_model_directory_and_a_recipe_are_subjects(tiny: Any, tmp_path: Path) -> None:
    run, base = tiny.fit(tiny.recipe("classification")), tiny.base("classification")
    of_run = find_subject(run.path)
    assert (of_run.recipe.task, of_run.run.path) == ("classification", run.path)
    of_model = find_subject(base)
    assert of_model.recipe.task == "classification"
    assert of_model.run.path == Path(f"runs/eval-{Path(base).name}")
    assert find_subject(base, output=str(tmp_path / "out")).run.path == tmp_path / "out"
    of_recipe = find_subject(
        {"task": "classification", "model": {"base": str(base)}, "output": str(tmp_path / "new")}
    )
    # training wants the recipe's own place empty
    assert of_recipe.run.path == tmp_path / "new-base"


def test_what_cannot_be_evaluated_is_said(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="was not trained yet"):
        find_subject({"task": "mlm", "output": str(tmp_path / "new")})
    run, base = tiny.fit(tiny.recipe("classification")), tiny.base("classification")
    with pytest.raises(ModelError, match="was trained for classification, not for ner"):
        find_subject({"task": "ner", "model": {"base": str(base)}, "output": str(tmp_path / "new")})
    with pytest.raises(RecipeError, match=r"model\.base: has no effect on a run that is trained"):
        find_subject(run.path, ["model.base=x"])
