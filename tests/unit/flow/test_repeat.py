"""Several runs of one recipe, by seeds and by folds."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from lmkit.commands.compare import compare
from lmkit.commands.train import dry_run, train
from lmkit.data.folds import split_by_fold
from lmkit.data.row import hash_of
from lmkit.data.splits import load_splits
from lmkit.errors import DataError, LmkitError, RecipeError, RunError
from lmkit.flow import repeat as repeating
from lmkit.flow.repeat import summarise
from lmkit.metrics.intervals import student_interval
from lmkit.recipe.load import dump_recipe
from lmkit.records import Metrics
from lmkit.run import Run
from lmkit.subject import find_subject
from lmkit.tasks.registry import problem

TEST = "sample:vader_tweets2/test.jsonl.gz"


def seeds(tiny: Any, **sections: Any) -> Any:
    return tiny.recipe("classification", **{"seeds": 2, "data": {"test": TEST}, **sections})


def test_interval_is_students() -> None:
    found = student_interval([0.5, 0.6, 0.7])
    assert found["mean"] == pytest.approx(0.6)
    assert found["sd"] == pytest.approx(0.1)
    half = 4.302653 * 0.1 / math.sqrt(3)  # t of 2 degrees of freedom, 97.5 %
    assert (found["low"], found["high"]) == (pytest.approx(0.6 - half), pytest.approx(0.6 + half))
    assert student_interval([0.5]) == {"mean": 0.5, "sd": None, "low": None, "high": None}
    assert student_interval([0.5, None])["mean"] is None


@pytest.fixture(scope="module")
def run(tiny: Any) -> tuple[Any, dict[str, Any]]:
    recipe = seeds(tiny)
    return recipe, train("finetune", recipe).to_json()


def test_seeds_are_runs_of_their_own_with_mean_and_spread(run: Any) -> None:
    recipe, summary = run
    folder = Path(recipe.output)
    assert {path.name for path in folder.iterdir()} == {"seed-13", "seed-14", "summary.json"}
    assert summary == json.loads((folder / "summary.json").read_text())
    assert (summary["over"], summary["split"], summary["task"]) == (
        "seeds",
        "test",
        "classification",
    )
    assert [(entry["run"], entry["seed"]) for entry in summary["runs"]] == [
        ("seed-13", 13),
        ("seed-14", 14),
    ]
    values = [Run(folder / name).metrics("test")["loss"] for name in ("seed-13", "seed-14")]
    assert values[0] != values[1]
    assert summary["metrics"]["loss"]["mean"] == pytest.approx(statistics.mean(values))
    assert summary["metrics"]["loss"]["sd"] == pytest.approx(statistics.stdev(values))
    assert [entry["metrics"]["loss"] for entry in summary["runs"]] == values
    assert summary["metrics"].keys() == {"loss", "accuracy", "f1_macro", "mcc"}


def test_run_of_a_seed_is_the_run_of_that_seed_alone(run: Any, tiny: Any) -> None:
    recipe, _ = run
    alone = tiny.merged(recipe, seeds=1, seed=14, output=f"{recipe.output}-alone")
    train("finetune", alone)
    stored = Run(f"{recipe.output}/seed-14")
    assert stored.stored_recipe() | {"name": "", "output": ""} == Run(
        alone.output
    ).stored_recipe() | {"name": "", "output": ""}
    assert (stored.model / "model.safetensors").read_bytes() == (
        Run(alone.output).model / "model.safetensors"
    ).read_bytes()


def test_resume_trains_the_missing_run_alone(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, summary = run
    trained: list[str] = []
    monkeypatch.setattr(
        "lmkit.flow.repeat.train_one", lambda stage, single, **flags: trained.append(single.output)
    )
    assert repeating.repeat("finetune", recipe, resume=True).to_json() == summary
    assert trained == []
    manifest = Path(recipe.output) / "seed-14" / "manifest.json"
    kept = manifest.read_text()
    manifest.write_text(
        json.dumps({key: value for key, value in json.loads(kept).items() if key != "finished"})
    )
    assert repeating.repeat("finetune", recipe, resume=True).to_json() == summary
    assert trained == [f"{recipe.output}/seed-14"]
    manifest.write_text(kept)


def test_finished_runs_of_another_recipe_are_not_summed_up(run: Any, tiny: Any) -> None:
    recipe, _ = run
    with pytest.raises(
        RunError, match=r"seed-13: this run was made with other train.learning_rate"
    ):
        train("finetune", tiny.merged(recipe, train={"learning_rate": 0.5}), resume=True)
    with pytest.raises(RunError, match="not empty"):
        train("finetune", recipe)


def test_folder_of_something_else_is_not_overwritten(tiny: Any) -> None:
    recipe = seeds(tiny)
    Path(recipe.output).mkdir()
    (Path(recipe.output) / "thesis.tex").write_text("all of it")
    with pytest.raises(RunError, match=r"holds thesis.tex"):
        train("finetune", recipe, overwrite=True)


def test_both_seeds_of_a_side_are_compared(run: Any) -> None:
    recipe, summary = run
    found = compare([recipe.output, f"{recipe.output}/seed-13"], metric="loss").to_json()
    assert found["a"] == pytest.approx(summary["metrics"]["loss"]["mean"])
    assert found["verdict"] in ("not distinguishable", "a is better", "b is better")


def test_cross_validation_tests_every_row_once(tiny: Any) -> None:
    recipe = tiny.recipe("classification", data={"folds": 2, "max_rows": 16, "validation": None})
    summary = train("finetune", recipe).to_json()
    assert (summary["over"], summary["split"]) == ("folds", "test")
    assert sum(entry["examples"] for entry in summary["runs"]) == 16
    folds = [Run(f"{recipe.output}/fold-{n}") for n in (1, 2)]
    lines = [
        (run.eval_folder("test") / "predictions.jsonl").read_text().splitlines() for run in folds
    ]
    assert sorted(json.loads(line)["id"] for each in lines for line in each) == list(range(16))
    assert [run.stored_recipe()["data"]["fold"] for run in folds] == ["1/2", "2/2"]
    assert {run.stored_recipe()["data"]["folds"] for run in folds} == {None}
    assert compare([recipe.output, recipe.output]).examples == 16


def test_folds_share_no_content_and_leave_room_for_validation(tiny: Any) -> None:
    recipe = tiny.recipe(
        "classification",
        data={
            "train": [TEST, TEST],
            "max_rows": None,
            "validation": None,
            "validation_fraction": 0.2,
        },
    )
    solved, seen = problem("classification"), []
    for number in range(1, 6):
        fold = tiny.merged(recipe, data={"fold": f"{number}/5"})
        rows = load_splits(fold, solved, wanted=("train", "validation", "test")).rows
        content = {split: {row["text"] for row in found} for split, found in rows.items()}
        assert not content["test"] & (content["train"] | content["validation"])
        assert 0.1 < len(rows["validation"]) / (len(rows["validation"]) + len(rows["train"])) < 0.3
        only_test = load_splits(
            fold, solved, wanted=("test",), facts={"labels": ["negative", "positive"]}
        ).rows
        assert only_test.keys() == {"test"}
        assert only_test["test"].fingerprint == rows["test"].fingerprint
        seen += [row["id"] for row in rows["test"]]
    assert sorted(seen) == list(range(2 * 326))


def test_rows_of_a_fold_stay_when_others_come(tiny: Any) -> None:
    many = tiny.splits(tiny.recipe("classification", data={"max_rows": 200})).rows["train"]
    few = many.select(range(100))
    chosen = [{row["id"] for row in split_by_fold(rows, "2/4")[1]} for rows in (many, few)]
    assert chosen[1] == {number for number in chosen[0] if number < 100}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"seeds": 2, "data": {"folds": 2, "test": None}}, "seeds: given beside data.folds"),
        (
            {"seeds": 1, "data": {"folds": 2, "fold": "1/2", "test": None}},
            "data.fold: given beside data.folds",
        ),
        ({"seeds": 1, "data": {"folds": 2, "test": TEST}}, "data.test: given beside data.folds"),
        ({"seeds": 1, "data": {"fold": "1/2", "test": TEST}}, "data.test: given beside data.fold"),
        ({"seeds": 1, "data": {"fold": "3/2", "test": None}}, "there is no fold 3/2"),
        (
            {"seeds": 2, "data": {"validation": None, "test": None}},
            "seeds: no data to measure the runs on",
        ),
    ],
)
def test_contradictions_are_refused(tiny: Any, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        train("finetune", seeds(tiny, **sections))


def test_a_fold_without_rows_is_refused(tiny: Any) -> None:
    rows = tiny.splits(tiny.recipe("classification")).rows["train"].select(range(3))
    filled = {
        int(hash_of({"label": row["label"], "text": row["text"]})[16:32], 16) * 4 >> 64
        for row in rows
    }
    empty = min(set(range(4)) - filled)
    with pytest.raises(DataError, match=f"no row of 3 rows falls to fold {empty + 1}/4"):
        split_by_fold(rows, f"{empty + 1}/4")


def test_several_runs_are_not_evaluated_as_one(tiny: Any) -> None:
    recipe = seeds(tiny)
    with pytest.raises(
        LmkitError, match=r"seeds: this recipe stands for several runs(.|\n)*seed-13"
    ):
        find_subject(recipe, ())


def test_dry_run_is_about_the_first(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = seeds(tiny)
    assert dry_run("finetune", recipe).to_json()["dry_run"]
    assert "2 runs; this is about the first, seed-13" in capsys.readouterr().out
    assert not Path(recipe.output).exists()


def test_a_metric_without_a_value_has_no_mean(tiny: Any) -> None:
    recipe = seeds(tiny)
    found = [
        Metrics(
            task="classification",
            split="test",
            examples=3,
            loss=loss,
            confidence=0.95,
            metrics={},
            signature="",
            seconds=1.0,
        )
        for loss in (None, 1.0)
    ]
    assert summarise(recipe, ["seed-13", "seed-14"], found).metrics["loss"]["mean"] is None
    assert "seeds: 2" in dump_recipe(recipe)
