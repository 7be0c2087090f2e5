"""A task of somebody else's package: nothing of lmkit is changed for it, and everything knows it.

The package is ``tests/toy_task``; docs/new-task.md explains how such a one is written.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lmkit
from lmkit.commands.compare import compare
from lmkit.commands.data import look
from lmkit.commands.recipes import check_recipe
from lmkit.commands.train import dry_run, smoke, train
from lmkit.data.encode import encode
from lmkit.data.splits import load_splits
from lmkit.errors import RecipeError
from lmkit.recipe import load_recipe
from lmkit.recipe.further import recipe_type
from lmkit.tasks import registry
from lmkit.tasks.fields import Field

TOY = Path(__file__).parents[1] / "toy_task"
SENTENCES = ("the cat sat", "a dog", "rain falls on the old town", "why not now", "sea")


def install(folder: Path, entry_points: dict[str, str]) -> None:
    """Write what pip leaves of a package: which entry points it has."""
    info = folder / "lmkit_counting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lmkit-counting\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[lmkit.tasks]", *lines, ""]))


def forget() -> None:
    """Have the registry look for packages anew."""
    for function in (
        registry._entries,
        registry._load,
        registry.problems,
        recipe_type,
    ):
        function.cache_clear()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package as pip installs it."""
    project = tomllib.loads((TOY / "pyproject.toml").read_text())["project"]
    site = tmp_path / "site-packages"
    site.mkdir()
    install(site, project["entry-points"]["lmkit.tasks"])
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(TOY))
    forget()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "counting"]:
        del sys.modules[name]
    monkeypatch.undo()
    forget()


@pytest.fixture
def recipe(tmp_path: Path, installed: None) -> dict[str, Any]:
    for split, times in (("train", 8), ("validation", 3)):
        texts = [f"{text} {extra}".strip() for text in SENTENCES for extra in ["", "today"] * times]
        rows = [{"sentence": text, "n": len(text.split())} for text in texts]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    return {
        "task": "count-words",
        "name": "counts",
        "model": {"preset": "bert-nano"},
        "tokenizer": {"train": {"algorithm": "wordpiece", "vocab_size": 100}},
        "counting": {"scale": 5},
        "data": {
            "train": str(tmp_path / "train.jsonl"),
            "validation": str(tmp_path / "validation.jsonl"),
            "max_length": 16,
        },
        "train": {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-3},
        "hardware": {"precision": "fp32"},
        "eval": {"resamples": 50, "baseline": True},
        "output": str(tmp_path / "run"),
    }


def test_recipes_know_it_by_name_alias_and_section(recipe: dict[str, Any], tmp_path: Path) -> None:
    loaded = load_recipe(recipe)
    assert loaded.task == "counting"  # whatever alias the file has
    assert loaded.counting.scale == 5  # type: ignore[attr-defined]
    (tmp_path / "counts.yaml").write_text(json.dumps(recipe))
    assert check_recipe(str(tmp_path / "counts.yaml")).task == "counting"
    with pytest.raises(RecipeError, match=r"counting.scale: expected a number greater than 0"):
        load_recipe(recipe, ["counting.scale=-1"])
    with pytest.raises(RecipeError, match=r"did you mean counting.scale"):
        load_recipe(recipe, ["counting.scala=2"])
    with pytest.raises(RecipeError, match=r"counting: has no effect on mlm"):
        load_recipe({"task": "mlm", "counting": {"scale": 2}})


def test_the_data_are_looked_at(recipe: dict[str, Any]) -> None:
    found = look(recipe).to_json()
    assert found["splits"]["train"]["rows"] == 80
    assert "labels" not in found["splits"]["train"]


def test_a_dry_run_and_a_smoke_run_take_it(recipe: dict[str, Any]) -> None:
    assert dry_run("finetune", load_recipe(recipe)).to_json()["task"] == "counting"
    assert smoke("finetune", load_recipe(recipe)).to_json()["task"] == "counting"


def test_it_is_learned_evaluated_compared_and_used(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = lmkit.finetune(recipe)
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert any("validation_count_error" in line for line in log)  # which chooses the checkpoint
    lmkit.evaluate(run)

    folder = run.eval_folder("validation")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["task"] == "counting"
    assert metrics["metrics"].keys() == {"count_error", "exact"}
    spaces = metrics["baselines"]["spaces"]
    assert spaces["metrics"]["count_error"]["value"] == 0
    assert (spaces["metric"], spaces["verdict"]) == ("count_error", "baseline is better")
    assert "usual_count" in metrics["baselines"]
    report = (folder / "report.html").read_text()
    assert "count_error" in report
    assert "there are 3" in report

    card = (run.path / "README.md").read_text()
    assert "Task: counting." in card
    assert 'lmkit predict RUN "how many words are these"' in card
    assert 'pipeline("text-classification", model="RUN/model"' in card
    assert "Seq2Seq" not in card

    (answer,) = lmkit.load(run).predict(["one two three"])
    assert answer.keys() == {"id", "text", "prediction", "score"}
    assert isinstance(answer["prediction"], int)

    other = {**recipe, "seed": 14, "output": str(tmp_path / "other")}
    train("finetune", load_recipe(other))
    lmkit.evaluate(str(tmp_path / "other"))
    verdict = compare([str(run.path), str(tmp_path / "other")]).to_json()
    assert verdict["metric"] == "count_error"


def test_rows_are_encoded_anew_when_an_option_of_the_task_changes(recipe: dict[str, Any]) -> None:
    problem = registry.problem("counting")
    largest = []
    for scale in (5, 10, 5):
        chosen = load_recipe(recipe, [f"counting.scale={scale}"])
        splits = load_splits(chosen, problem, wanted=["train"])
        task = problem.task(chosen, splits.facts, read_words)  # type: ignore[arg-type]
        encoded = encode(splits.rows["train"], task, "read_words")
        pieces = encoded.pieces.take(range(len(encoded)))
        largest.append(max(piece["count"] for piece in pieces))
    assert largest == [7 / 5, 7 / 10, 7 / 5]


def read_words(texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
    """Stand in for a tokenizer: a token for each word."""
    return {"input_ids": [[1] * len(text.split()) for text in texts]}


def test_labels_of_its_own_need_neither_learn_nor_keys(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = registry.problem("counting")
    count = Field("count", "label", aliases=("n",), gold=True)
    monkeypatch.setattr("counting.problem.FIELDS", (Field("text", "text"), count))
    monkeypatch.delattr(type(problem), "learn")
    recipe["data"]["columns"] = {"text": "sentence"}
    splits = load_splits(load_recipe(recipe), problem, wanted=["train"])
    assert splits.facts == {"labels": ["1", "2", "3", "4", "6", "7"]}

    order = ["7", "6", "4", "3", "2", "1"]
    named = load_recipe(recipe, [f"data.labels={json.dumps(order)}"])
    assert load_splits(named, problem, wanted=["train"]).facts == {"labels": order}
    assert "no effect" not in capsys.readouterr().err


def test_a_package_that_is_broken_says_so_and_hinders_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, {"gone": "no_such_module:PROBLEM", "odd": "json:dumps", "ner": "json:loads"})
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    try:
        with pytest.raises(RecipeError, match=r"'gone' of the package lmkit-counting cannot be"):
            registry.problem("gone")
        with pytest.raises(RecipeError, match=r"json:dumps is no lmkit.tasks.base.Problem"):
            registry.problem("odd")
        with pytest.raises(RecipeError, match=r"several packages have a task 'ner'"):
            registry.problem("ner")
        assert load_recipe({"task": "clm"}).task == "clm"
        assert "cannot be loaded" in capsys.readouterr().err
    finally:
        monkeypatch.undo()
        forget()


def test_the_guide_names_what_there_is() -> None:
    from lmkit.tasks.base import Problem, Task

    guide = (Path(__file__).parents[2] / "docs" / "new-task.md").read_text(encoding="utf-8")
    problem_part, _, task_part = guide.partition("## 3. The task")
    for part, kind in ((problem_part, Problem), (task_part.partition("## 4.")[0], Task)):
        rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
        assert rows
        for name in re.findall(r"`(\w+)", " ".join(rows)):
            assert name in {*dir(kind), *kind.__annotations__}, name


@pytest.mark.parametrize("page", ["tour.md", "new-task.md"])
def test_places_and_names_of_a_page_exist(page: str) -> None:
    """A link is a file of the repository. A name behind a link and a colon stands in that file or folder."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / page).read_text(encoding="utf-8")
    for place in re.findall(r"\]\(\.\./([^)]+)\)", text):
        assert (root / place).exists(), place
    for place, names in re.findall(r"\]\(\.\./([^)]+)\):\s((?:`[\w.]+`(?:, )?)+)", text):
        source = (root / place).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names):
            assert re.search(rf"\b(def|class) {name}\b", source), f"{place}: {name}"


def test_the_rooms_of_the_tour_are_those_of_the_package() -> None:
    root = Path(__file__).parents[2]
    tour = (root / "docs" / "tour.md").read_text(encoding="utf-8")
    rooms = tour.partition("## Rooms")[2].split("```")[1]
    package = root / "lmkit"
    for place in package.iterdir():
        if place.is_dir() and not place.name.startswith("__"):
            assert f"{place.name}/" in rooms, place.name
        elif place.suffix == ".py" and not place.name.startswith("__"):
            assert place.name in rooms, place.name
    (models,) = re.findall(r"models/(.*?)\ndata/", rooms, re.DOTALL)
    for name in re.findall(r"\w+\.py", models):
        assert (package / "models" / name).is_file(), name
    names = re.findall(r"`(Setup|Classification|Session)\.(\w+)`", tour)
    assert names
    sources = {
        "Setup": package / "train" / "setup.py",
        "Classification": package / "tasks" / "classification" / "task.py",
        "Session": package / "train" / "session.py",
    }
    for kind, name in names:
        assert f"def {name}(" in sources[kind].read_text(encoding="utf-8"), f"{kind}.{name}"
