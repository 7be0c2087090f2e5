"""A run from end to end, in process."""

from __future__ import annotations

import json
import shutil
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmkit.data.plan import Plan
from lmkit.errors import RecipeError, TrainingStopped
from lmkit.run import Run
from lmkit.tasks.classification.task import Classification
from lmkit.train import progress, session, step_log
from lmkit.train.batches import Rank, StepBatches
from lmkit.train.checkpoint import checkpoint_steps, name_of
from lmkit.train.guard import Guard
from lmkit.train.loop import Step
from lmkit.train.plans import UNLIMITED, checkpoint_interval, metric_of, total_steps


@pytest.fixture(scope="module")
def run(tiny: Any) -> Run:
    recipe = tiny.recipe(
        "classification",
        train={
            "max_steps": None,
            "epochs": 2,
            "eval_every": 0.5,
            "select_best": "loss",
            "learning_rate": 1e-2,
            "warmup": 0.5,
        },
        hardware={"checkpoint_every": 2, "keep_checkpoints": 2},
    )
    found: Run = tiny.fit(recipe)
    return found


def test_a_run_leaves_what_the_contract_says(run: Run) -> None:
    files = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert {
        "recipe.yaml",
        "manifest.json",
        "log.jsonl",
        "README.md",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/lmkit.json",
        "eval/validation/metrics.json",
        "eval/validation/predictions.jsonl",
    } <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".tmp"))]
    assert {path.split("/")[0] for path in files} == {
        "recipe.yaml",
        "manifest.json",
        "log.jsonl",
        "README.md",
        "model",
        "checkpoints",
        "eval",
    }


def test_the_log_has_a_line_for_every_step(run: Run) -> None:
    lines = [line for line in run.log_lines() if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    times = {"tokens_per_second", "data_wait", "seconds"}
    assert all(
        line.keys()
        == {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "padding", *times}
        for line in lines
    )
    assert [line["epoch"] for line in lines] == [0.3333, 0.6667, 1.0, 1.3333, 1.6667, 2.0]
    assert [round(line["learning_rate"], 5) for line in lines] == [
        0.00333,
        0.00667,
        0.01,
        0.01,
        0.00667,
        0.00333,
    ]
    assert all(0 <= line["padding"] < 1 for line in lines)
    # two epochs of 10 rows in windows of 32 tokens
    assert (
        sum(line["tokens"] for line in lines)
        == run.manifest["tokens_seen"]
        == 2 * run.manifest["tokens_per_epoch"]
    )


def test_a_line_of_the_log_tells_speed_padding_and_the_share_of_waiting() -> None:
    zero = torch.zeros(())
    steps = [
        Step(
            number,
            zero,
            zero,
            0.1,
            items=1,
            tokens=tokens,
            slots=40,
            waited_seconds=waited,
            share=None,
            interrupted=False,
        )
        for number, tokens, waited in ((1, 30, 1.0), (2, 34, 0.5))
    ]
    tally = step_log.Tally()
    for step in steps:
        tally.add(step)
    line = step_log.log_line(steps[-1], tally, Plan(4, 2, 13), seconds=2.0)
    assert (line["tokens"], line["tokens_per_second"], line["padding"], line["data_wait"]) == (
        64,
        32.0,
        0.2,
        0.75,
    )


def test_the_clock_of_the_log_waits_for_the_losses(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU is told what to compute long before it has computed it: without waiting its steps would seem to take no time."""
    check, waits = Guard.check, []

    def waited(guard: Guard) -> None:
        check(guard)
        waits.append(1000.0)

    clock, plain = types.SimpleNamespace(), time.perf_counter
    clock.perf_counter = lambda: plain() + sum(waits)
    monkeypatch.setattr(Guard, "check", waited)
    for module in (progress, session, step_log):
        monkeypatch.setattr(module, "time", clock)
    lines = [
        json.loads(line)
        for line in (tiny.fit(tiny.recipe("classification")).path / "log.jsonl")
        .read_text()
        .splitlines()
    ]
    first, second = (line for line in lines if "tokens" in line)
    assert 1000 <= first["seconds"] < 2000 <= second["seconds"] < 3000
    assert first["tokens_per_second"] < 1


def test_a_line_of_steps_in_which_no_label_counted_has_no_loss() -> None:
    zero = torch.zeros(())
    step = Step(
        1,
        zero,
        zero,
        0.1,
        items=0,
        tokens=3,
        slots=3,
        waited_seconds=0.0,
        share=None,
        interrupted=False,
    )
    tally = step_log.Tally()
    tally.add(step)
    assert step_log.log_line(step, tally, Plan(4, 2, 13), seconds=1.0)["loss"] is None


def test_the_manifest_says_what_the_run_was_made_of(run: Run) -> None:
    manifest = run.manifest
    assert (manifest["task"], manifest["seed"], manifest["steps"], manifest["planned_steps"]) == (
        "classification",
        13,
        6,
        6,
    )
    assert manifest["parent"] is None
    assert [
        (entry["split"], entry["rows"], len(entry["sha256"])) for entry in manifest["data"]
    ] == [
        ("train", 10, 64),
        ("validation", 10, 64),
    ]
    weights = load_file(run.model / "model.safetensors")
    assert (
        manifest["parameters"]["total"]
        == manifest["parameters"]["trained"]
        == sum(w.numel() for w in weights.values())
    )
    assert manifest["hardware"]["precision"] == "fp32"
    assert manifest["hardware"]["processes"] == 1


def test_the_checkpoint_with_the_best_validation_becomes_the_model(run: Run) -> None:
    losses = {
        line["step"]: line["validation_loss"]
        for line in run.log_lines()
        if "validation_loss" in line
    }
    assert list(losses) == [2, 4, 6]
    best = min(losses, key=lambda step: losses[step])
    assert run.manifest["best_step"] == best
    stored = load_file(run.checkpoints / name_of(best) / "model.safetensors")
    model = load_file(run.model / "model.safetensors")
    assert all(torch.equal(stored[name], model[name]) for name in model)
    assert run.metrics("validation")["loss"] == pytest.approx(losses[best], abs=1e-6)
    assert set(checkpoint_steps(run)) == {4, 6, best}


def test_the_best_is_kept_where_the_last_is_worse(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(session, "validate", lambda *arguments, **options: next(values))
    recipe = tiny.recipe(
        "classification",
        train={"max_steps": 3, "eval_every": 0.1},
        hardware={"keep_checkpoints": 1},
    )
    run = tiny.fit(recipe)
    assert run.manifest["best_step"] == 2
    assert checkpoint_steps(run) == [2, 3]
    stored, model = (
        load_file(folder / "model.safetensors")
        for folder in (run.checkpoints / name_of(2), run.model)
    )
    assert all(torch.equal(stored[name], model[name]) for name in model)


def test_training_stops_early_without_improvement(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.5, 0.9, 0.7, 0.9, 0.9, 1.0])
    monkeypatch.setattr(session, "validate", lambda *arguments, **options: next(values))
    recipe = tiny.recipe(
        "classification", train={"max_steps": 9, "eval_every": 0.1, "early_stopping": 3}
    )
    run = tiny.fit(recipe)
    assert (run.manifest["steps"], run.manifest["best_step"]) == (5, 2)


def test_a_limit_of_time_ends_the_run_with_a_model(tiny: Any) -> None:
    recipe = tiny.recipe(
        "classification", train={"max_steps": None, "max_minutes": 0.005, "schedule": "linear"}
    )
    run = tiny.fit(recipe)
    lines = [line for line in run.log_lines() if "loss" in line]
    assert run.manifest["planned_steps"] is None
    assert run.manifest["steps"] == lines[-1]["step"] == checkpoint_steps(run)[-1]
    assert run.manifest["seconds"] >= 0.3
    assert lines[-1]["learning_rate"] == 0.0
    assert (run.model / "model.safetensors").is_file()
    again = tiny.fit(recipe, resume=True)
    assert again.manifest["steps"] == lines[-1]["step"]


# ---------------------------------------------------------------------------------- a loss that is not finite


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tiny: Any) -> None:
    """Elsewhere an average hides it (``logging_nan_inf_filter``)."""
    recipe = tiny.recipe(
        "classification",
        train={"max_steps": 6, "learning_rate": 1e30, "select_best": "last", "batch_size": 3},
        hardware={"checkpoint_every": 1},
    )
    with pytest.raises(TrainingStopped) as stopped:
        tiny.fit(recipe)
    run = Run(recipe.output)
    assert "step 2: the loss is not finite" in str(stopped.value)
    assert "the last good checkpoint is step 1" in str(stopped.value)
    assert checkpoint_steps(run) == [1]
    assert not run.model.exists()
    assert [line["step"] for line in run.log_lines()] == [1]
    rows = [
        json.loads(line) for line in (run.path / "not-finite-step-2.jsonl").read_text().splitlines()
    ]
    data = tiny.prepared(recipe).encoded["train"].rows
    examples = Plan(10, 3, recipe.seed).examples(1)
    assert [row["id"] for row in rows] == sorted(examples.tolist())
    assert all(row["text"] == data[row["id"]]["text"] for row in rows)
    assert all(row["place"].endswith(f"train.jsonl.gz:{row['id'] + 1}") for row in rows)


def test_a_loss_that_is_not_finite_is_found_between_lines_of_the_log(tiny: Any) -> None:
    recipe = tiny.recipe(
        "classification",
        train={"max_steps": 6, "learning_rate": 1e30, "select_best": "last"},
        logging={"every": 6},
    )
    with pytest.raises(TrainingStopped, match=r"step 2: .*there is no checkpoint yet"):
        tiny.fit(recipe)


def test_a_nan_planted_in_one_row_is_found_with_that_row(tiny: Any, tmp_path: Path) -> None:
    """As the vector of a token that no other row has."""
    base = shutil.copytree(tiny.base("classification"), tmp_path / "base")
    recipe = tiny.recipe(
        "classification",
        base=str(base),
        train={"max_steps": 9, "batch_size": 3, "select_best": "last"},
    )
    encoded, plan = tiny.prepared(recipe).encoded["train"], Plan(10, 3, recipe.seed)
    tokens = [
        {token for piece in encoded.example(row) for token in piece["input_ids"]}
        for row in range(10)
    ]
    row = plan.examples(1).tolist()[0]
    (alone, *_) = tokens[row].difference(*tokens[:row], *tokens[row + 1 :])
    weights = load_file(base / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][alone] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingStopped, match="step 2: the loss is not finite"):
        tiny.fit(recipe)
    rows = (Run(recipe.output).path / "not-finite-step-2.jsonl").read_text().splitlines()
    assert row in [json.loads(line)["id"] for line in rows]
    assert len(rows) == 3


def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Classification.loss

    def planted(task: Any, model: Any, batch: Any) -> Any:
        found = loss(task, model, batch)
        if found.requires_grad:
            found.register_hook(lambda gradient: gradient * float("nan"))
        return found

    monkeypatch.setattr(Classification, "loss", planted)
    with pytest.raises(TrainingStopped, match=r"step 1: .*\(loss 0\.\d+, gradient norm nan\)"):
        tiny.fit(tiny.recipe("classification"))


# ---------------------------------------------------------------------------------- plans and devices


@pytest.mark.parametrize(
    ("train", "steps"),  # 10 examples by 4: 3 steps an epoch
    [
        ({}, 9),
        ({"epochs": 1}, 3),
        ({"epochs": 0.5}, 2),
        ({"epochs": 2, "max_steps": 5}, 5),
        ({"epochs": 1, "max_steps": 5}, 3),
        ({"max_steps": 5}, 5),
        ({"max_minutes": 1}, UNLIMITED),
        ({"max_minutes": 1, "max_steps": 5}, 5),
    ],
)
def test_the_first_limit_ends_the_run(tiny: Any, train: dict[str, Any], steps: int) -> None:
    recipe = tiny.recipe("classification", train={"max_steps": None} | train)
    assert total_steps(recipe, Plan(10, 4, 13)) == steps


def test_the_metric_that_chooses_is_checked(tiny: Any) -> None:
    def chosen(by: str | None, *, with_validation: bool = True) -> str | None:
        recipe = tiny.recipe("classification", train={"select_best": by})
        return metric_of(
            recipe, tiny.prepared(tiny.recipe("classification")).task.facts, with_validation
        )

    assert chosen(None) == "f1_macro"
    assert chosen("loss") == "loss"
    assert chosen("last") is None
    assert chosen(None, with_validation=False) is None
    with pytest.raises(
        RecipeError, match=r"classification has no metric 'f1_marco'\n.*did you mean 'f1_macro'"
    ):
        chosen("f1_marco")
    with pytest.raises(RecipeError, match="there is no validation data to choose by"):
        chosen("accuracy", with_validation=False)


def test_checkpoints_come_after_steps_or_minutes(tiny: Any) -> None:
    def interval(every: Any) -> Any:
        return checkpoint_interval(
            tiny.recipe("classification", hardware={"checkpoint_every": every})
        )

    assert interval(500) == (500, None)
    assert interval("10min") == (None, 600.0)
    assert interval("0.5min") == (None, 30.0)
    for wrong in ("ten", "10 minutes", "xmin"):
        with pytest.raises(RecipeError, match="a number of steps"):
            interval(wrong)


def test_a_rank_without_examples_takes_part_with_nothing_that_counts(tiny: Any) -> None:
    prepared = tiny.prepared(tiny.recipe("classification"))
    plan = Plan(10, 3, 13)  # the last step has one example
    ranks = [
        StepBatches(
            prepared.encoded["train"],
            plan,
            prepared.task,
            rank=Rank(rank, 2),
            budget=1,
            packed=False,
        )[3]
        for rank in (0, 1)
    ]
    assert [sum(batch.items for batch in micro) for micro in ranks] == [1, 0]
    assert [len(micro) for micro in ranks] == [1, 1]


def test_the_card_says_what_the_model_is(run: Run) -> None:
    card = Path(run.card_file).read_text(encoding="utf-8")
    assert card.startswith("# classification\n")
    for part in ("6 steps of 4 examples", "`negative`, `positive`", "train.jsonl.gz", "f1_macro"):
        assert part in card
