"""The comparison of two commits sees every difference in what was learned, and none in how long it took."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import two_commits
from safetensors.torch import load_file, save_file
from two_commits import Case, Side

CASE = Case("demo/mlm", "fp32", 1)


@pytest.fixture
def sides(tmp_path: Path) -> list[Side]:
    """Two sides whose runs are equal but for the seconds."""
    both = [Side(name, tmp_path, tmp_path / name) for name in ("base", "tree")]
    for seconds, side in enumerate(both):
        run = CASE.run_of(side)
        for folder in ("model", "eval/validation"):
            (run / folder).mkdir(parents=True)
        line = {"step": 1, "loss": 2.5, "seconds": seconds, "tokens_per_second": seconds}
        (run / "log.jsonl").write_text(json.dumps(line) + "\n")
        weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([float("nan"), 0.0])}
        save_file(weights, run / "model" / "model.safetensors")
        (run / "eval/validation/predictions.jsonl").write_text('{"id": 0}\n')
        (run / "eval/validation/metrics.json").write_text(json.dumps({"seconds": seconds}))
        run.with_suffix(".out").write_text(f'{seconds} s\n{{"prediction": "yes"}}\n')
    return both


def test_equal_runs_differ_in_nothing(sides: list[Side]) -> None:
    assert two_commits.differences(CASE, sides) == []


def test_one_bit_of_a_weight_is_seen(sides: list[Side]) -> None:
    path = CASE.run_of(sides[1]) / "model" / "model.safetensors"
    weights = load_file(path)
    weights["b"][1] = -0.0
    save_file(weights, path)
    assert two_commits.differences(CASE, sides) == [
        "model/model.safetensors: 1 tensors differ, first b"
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("log.jsonl", '{"step": 1, "loss": 2.6}\n', "step 1: loss 2.5 and 2.6"),
        ("eval/validation/predictions.jsonl", '{"id": 1}\n', "validation/predictions.jsonl: line 1 differs"),
        ("eval/validation/metrics.json", '{"loss": 1}', "eval/validation/metrics.json differs"),
    ],
)  # fmt: skip
def test_other_files_are_compared(sides: list[Side], name: str, text: str, message: str) -> None:
    (CASE.run_of(sides[1]) / name).write_text(text)
    assert two_commits.differences(CASE, sides) == [message]


def test_answers_of_predict_are_compared(sides: list[Side]) -> None:
    CASE.run_of(sides[1]).with_suffix(".out").write_text('{"prediction": "no"}\n')
    assert two_commits.differences(CASE, sides) == ["lmkit predict answers otherwise"]


def test_file_that_one_side_lacks_is_a_difference(sides: list[Side]) -> None:
    shutil.rmtree(CASE.run_of(sides[1]) / "model")
    assert two_commits.differences(CASE, sides) == [
        "model.safetensors of model is missing on one side"
    ]


def test_every_recipe_that_trains_is_run() -> None:
    assert {"demo/ner", "finetune/regression", "pretrain/denoise"} <= set(two_commits.RECIPES)
