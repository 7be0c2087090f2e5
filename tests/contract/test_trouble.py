"""Trouble on one of two processes: memory that ends there, patience that ends, a mistake found there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmkit.recipe.load import dump_recipe
from lmkit.run import Run
from lmkit.train.checkpoint import checkpoint_steps
from lmkit.train.launch import ProcessFailed, launch

SCRIPT = Path(__file__).with_name("with_trouble_on_one_rank.py")


def recipe_of(tiny: Any, *, processes: int, **train: Any) -> Any:
    chosen = {
        "max_steps": 4,
        "batch_size": 5,
        "epsilon": 1e-4,
        "learning_rate": 1e-2,
        "eval_every": 2,
        "select_best": "loss",
    }
    hardware = {"processes": processes, "checkpoint_every": 1, "keep_checkpoints": 9}
    return tiny.recipe("classification", train=chosen | train, hardware=hardware)


def write(recipe: Any, file: Path) -> str:
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    return f"finetune={file}"


@pytest.fixture(scope="module")
def runs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One process undisturbed; two of which one has little memory; the latter resumed; two that lose patience."""
    folder = tmp_path_factory.mktemp("recipes")
    alone, halved, half = (
        recipe_of(tiny, processes=1),
        recipe_of(tiny, processes=2),
        recipe_of(tiny, processes=2, max_steps=2),
    )
    half = half.model_copy(update={"train": half.train.model_copy(update={"schedule": "constant"})})
    rest = half.model_copy(update={"train": half.train.model_copy(update={"max_steps": 4})})
    straight = rest.model_copy(update={"output": f"{rest.output}-straight"})
    patient = recipe_of(
        tiny, processes=2, max_steps=12, learning_rate=3.0, eval_every=0.1, early_stopping=2
    )
    arguments = [
        write(recipe, folder / f"{i}.yaml")
        for i, recipe in enumerate((halved, half, rest, straight, patient))
    ]
    launch([str(SCRIPT), "memory", *arguments], processes=2)
    return {
        "alone": tiny.fit(alone),
        **{
            name: Run(recipe.output)
            for name, recipe in (("halved", halved), ("resumed", rest), ("straight", straight))
        },
        "patient": Run(patient.output),
    }


def weights(run: Run, step: int = 4) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints / f"step-{step:08d}" / "model.safetensors")


def test_memory_that_ends_on_one_rank_changes_nothing_that_is_learned(runs: dict[str, Run]) -> None:
    ours, theirs = weights(runs["alone"]), weights(runs["halved"])
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-5, rtol=0, msg=name)
    assert (
        runs["halved"].manifest["micro_batch_tokens"] < runs["alone"].manifest["micro_batch_tokens"]
    )


def test_two_processes_resume_bit_for_bit(runs: dict[str, Run]) -> None:
    ours, theirs = weights(runs["resumed"]), weights(runs["straight"])
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert [line["step"] for line in runs["resumed"].log_lines() if "loss" in line] == [1, 2, 3, 4]


def test_two_processes_lose_patience_together(runs: dict[str, Run]) -> None:
    run = runs["patient"]
    values = [line["validation_loss"] for line in run.log_lines() if "validation_loss" in line]
    assert run.manifest["steps"] == len(values) == checkpoint_steps(run)[-1] < 12
    assert min(values[-2:]) > min(values[:-2])


def test_a_rank_that_fails_ends_all_with_its_own_message(
    tiny: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    with pytest.raises(ProcessFailed) as failed:
        launch(
            [str(SCRIPT), "failure", write(recipe_of(tiny, processes=2), tmp_path / "r.yaml")],
            processes=2,
        )
    assert time.monotonic() - begun < 600  # who is missed by the other one waits for half an hour
    assert failed.value.status == 2
    assert "train.jsonl:7: a row that the second rank cannot read" in capfd.readouterr().err
