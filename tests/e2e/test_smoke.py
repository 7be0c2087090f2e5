"""Every recipe that ships passes ``--smoke``: read, train, save, reload, evaluate, on a tiny model and a few rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmkit.errors import RunError
from lmkit.recipe import load_recipe, shipped_recipes
from lmkit.tasks.registry import problem


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_passes_smoke(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmkit.commands.train import smoke

    monkeypatch.chdir(tmp_path)  # a user's folder: nothing but what ships is there
    found = smoke(problem(load_recipe(name).task).stage, name).to_json()
    assert found["smoke"]
    assert found["steps"] == 4
    assert found["evaluation"]["examples"] > 0
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmkit.commands.train import smoke

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        RunError,
        match="--smoke: one process is enough for it\\n  the same command without the launcher",
    ):
        smoke("pretrain", shipped_pretraining())


def shipped_pretraining() -> str:
    return next(
        name for name in shipped_recipes() if problem(load_recipe(name).task).stage == "pretrain"
    )


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_says_what_it_is_in_its_first_line(name: str) -> None:
    first = shipped_recipes()[name].read_text(encoding="utf-8").split("\n")[0]
    assert first.startswith("# ")
    assert len(first) > 20
