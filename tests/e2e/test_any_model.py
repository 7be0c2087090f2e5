"""``lmkit eval`` on models that lmkit did not make, on other data, and what it says of where they come from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def run(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained classifier of the project's, whose training data lie in a folder of their own."""
    from lmkit.commands.train import train

    folder = tmp_path_factory.mktemp("any")
    rows = (project / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (("train", rows[:40]), ("validation", rows[60:]), ("test", rows[30:50])):
        (folder / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    values: dict[str, Any] = {
        "task": "classification",
        "model": {"preset": "bert-nano"},
        "tokenizer": {"train": {"algorithm": "wordpiece", "vocab_size": 300}},
        "data": {
            **{split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")},
            "max_length": 32,
        },
        "train": {"max_steps": 4, "batch_size": 8},
        "hardware": {"precision": "fp32"},
        "eval": {"resamples": 20},
        "output": str(folder / "run"),
    }
    train("finetune", values)
    return folder / "run"


def analysis(folder: Path, split: str = "test") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "eval" / split / "analysis.json").read_text())
    return found


def test_rows_seen_in_training_are_counted_and_the_clean_score_stands_beside(
    run: Path, command: Command, tmp_path: Path
) -> None:
    ended = command(
        "eval", str(run), "eval.temperature=true", "-o", str(tmp_path / "out"), cwd=tmp_path
    )
    assert ended.status == 0, ended.err
    found = analysis(tmp_path / "out")
    overlap = found["suspicions"]["overlap"]
    assert overlap["exact"] == 10  # rows 30 to 39 of the test data are training rows
    assert overlap["clean"]["examples"] == 20 - 10 - overlap["near"]
    assert "10 rows also stand in training" in ended.err
    fitted = found["calibration"]["temperature"]
    assert fitted["fitted_on"] == 20
    assert fitted["before"]["nll"] == pytest.approx(
        json.loads((tmp_path / "out/eval/test/metrics.json").read_text())["loss"], rel=1e-4
    )


def test_a_temperature_is_not_fitted_on_what_it_is_measured_on(
    run: Path, command: Command, tmp_path: Path
) -> None:
    ended = command("eval", str(run), "data.test=null", "eval.temperature=true", cwd=tmp_path)
    assert ended.status == 2
    assert "eval.temperature" in ended.err


def test_training_data_that_are_gone_stop_nothing(
    run: Path, command: Command, tmp_path: Path
) -> None:
    ended = command(
        "eval", str(run), "data.train=gone.jsonl", "-o", str(tmp_path / "out"), cwd=tmp_path
    )
    assert ended.status == 0, ended.err
    assert "not looked for" in ended.err
    overlap = analysis(tmp_path / "out")["suspicions"]["overlap"]
    assert overlap["checked"] is False
    assert "gone.jsonl" in overlap["reason"]


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_model_that_lmkit_did_not_make_is_evaluated_with_its_task_and_data(
    run: Path, command: Command, tmp_path: Path, kind: str
) -> None:
    from transformers import AutoModelForSequenceClassification

    shutil.copytree(run / "model", tmp_path / "model", ignore=shutil.ignore_patterns("lmkit.json"))
    if kind == "adapter":
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        get_peft_model(
            base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
        ).save_pretrained(tmp_path / "adapter")
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(run / "model" / name, tmp_path / "adapter" / name)
    settings = [
        "task=classification",
        f"data.test={run.parent / 'test.jsonl'}",
        "data.max_length=32",
        "eval.resamples=20",
    ]
    ended = command(
        "eval", str(tmp_path / kind), *settings, "-o", str(tmp_path / "out"), "--json", cwd=tmp_path
    )
    assert ended.status == 0, ended.err
    theirs = command("eval", str(run), "-o", str(tmp_path / "own"), "--json", cwd=tmp_path)
    # LoRA begins as no change, so both are the run's own model
    assert ended.json["metrics"]["accuracy"] == theirs.json["metrics"]["accuracy"]
    assert ended.json["loss"] == pytest.approx(theirs.json["loss"], rel=1e-5)
    assert (tmp_path / "out/eval/test/report.html").is_file()
