"""Runs that lmkit 0.1 left behind: they are loaded, evaluated, compared and resumed as 0.1 itself did it.

Everything is fp32 on a CPU without dropout. Another chip rounds otherwise, so numbers are equal up to that.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run-0.1"
MADE_IN = "/tmp/run-0.1"
NAMES = ["language", "opinions", "adapter"]
STAGES = {"language": "pretrain", "opinions": "finetune", "adapter": "finetune"}
LAST_STEP = {"language": 10, "opinions": 26, "adapter": 26}
TEXTS = {
    "language": ["we had a [MASK] trip"],
    "opinions": ["the food was great", "an awful room"],
    "adapter": ["the food was great", "an awful room"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the folder of 0.1 whose paths lead to it."""
    copy = tmp_path / "copy"
    shutil.copytree(FIXTURE, copy)
    for path in copy.rglob("*"):
        if path.suffix in (".json", ".yaml"):
            path.write_text(path.read_text("utf-8").replace(MADE_IN, str(copy)), "utf-8")
    return copy


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def nearly(value: Any) -> Any:
    """Return a value that equals others whose numbers differ by rounding alone."""
    if isinstance(value, dict):
        return {key: nearly(part) for key, part in value.items()}
    if isinstance(value, list):
        return [nearly(part) for part in value]
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-3, abs=1e-5)
    return value


def without_seconds(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key != "seconds"}


@pytest.mark.parametrize("name", NAMES)
def test_run_is_loaded_and_answers_as_before(folder: Path, name: str) -> None:
    import lmkit

    answers = lmkit.load(folder / name).predict(TEXTS[name])
    assert answers == nearly(read(folder / "expected" / f"{name}-answers.json"))


@pytest.mark.parametrize("name", NAMES)
def test_run_is_evaluated_as_before(folder: Path, command: Any, name: str) -> None:
    results = folder / name / "eval" / "test"
    metrics, predictions = read(results / "metrics.json"), read_lines(results / "predictions.jsonl")
    shutil.rmtree(results)
    ended = command("eval", name, "--json", cwd=folder)
    assert ended.status == 0, ended.err
    assert without_seconds(ended.json) == nearly(without_seconds(metrics))
    assert read_lines(results / "predictions.jsonl") == nearly(predictions)


def test_runs_are_compared_as_before(folder: Path, command: Any) -> None:
    ended = command("compare", "opinions", "adapter", "--json", cwd=folder)
    assert ended.status == 0, ended.err
    assert ended.json == nearly(read(folder / "expected" / "comparison.json"))


@pytest.mark.parametrize("name", NAMES)
def test_run_is_resumed_to_where_0_1_came(folder: Path, command: Any, name: str) -> None:
    steps = f"train.max_steps={LAST_STEP[name]}"
    before = read_lines(folder / name / "log.jsonl")
    ended = command(STAGES[name], f"{name}.yaml", "--resume", steps, cwd=folder)
    assert ended.status == 0, ended.err
    lines = read_lines(folder / name / "log.jsonl")
    assert lines[: len(before)] == before
    learned = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "padding")
    steps_after = [line for line in lines[len(before) :] if "loss" in line]
    expected = read_lines(folder / "expected" / f"{name}-log.jsonl")
    assert [{key: line[key] for key in learned} for line in steps_after] == [
        nearly({key: line[key] for key in learned}) for line in expected
    ]
    checkpoint = folder / name / "checkpoints" / f"step-{LAST_STEP[name]:08}"
    weights = load_file(checkpoint / "model.safetensors")
    reached = load_file(folder / "expected" / f"{name}-weights.safetensors")
    assert weights.keys() == reached.keys()
    for key, tensor in reached.items():
        assert (weights[key] - tensor).abs().max() < 1e-4, key
