"""Two processes learn what one learns, and evaluate each row once [transformers#35078, trl#7010]."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmkit.recipe.load import dump_recipe
from lmkit.run import Run
from lmkit.tasks.registry import problem
from lmkit.train.launch import ProcessFailed, _failed, launch

SCRIPT = Path(__file__).with_name("as_one_of_several.py")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
HANDLERS = [signal.getsignal(number) for number in SIGNALS]  # before any launch
STEPS = 4
KINDS = ("mlm", "classification by LoRA", "ner with a CRF", "denoise", "translation")


def recipe_of(tiny: Any, kind: str, *, processes: int) -> Any:
    """Steps of three examples and of fewer than there are ranks; rounding is not blown up by a tiny epsilon."""
    sections: dict[str, Any] = {
        "train": {
            "max_steps": STEPS,
            "batch_size": 3,
            "epsilon": 1e-4,
            "learning_rate": 1e-2,
            "eval_every": 2,
            "select_best": "loss",
        },
        "hardware": {"processes": processes, "micro_batch_tokens": 64},
        "data": {"max_rows": 7},  # the third step of an epoch has one
    }
    if kind == "classification by LoRA":
        return tiny.recipe(
            "classification", base=tiny.base("mlm"), lora={"rank": 2, "dropout": 0.0}, **sections
        )
    if kind == "ner with a CRF":
        return tiny.recipe("ner", tagging={"crf": True}, **sections)
    return tiny.recipe(kind, **sections)


@pytest.fixture(scope="module")
def runs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Run]]:
    """Each kind by one process and by two, the latter in one launch."""
    alone = {kind: tiny.fit(recipe_of(tiny, kind, processes=1)) for kind in KINDS}
    folder, together, arguments = tmp_path_factory.mktemp("recipes"), {}, []
    for number, kind in enumerate(KINDS):
        recipe = recipe_of(tiny, kind, processes=2)
        file = folder / f"{number}.yaml"
        file.write_text(dump_recipe(recipe), encoding="utf-8")
        arguments.append(f"{problem(recipe.task).stage}={file}")
        together[kind] = Run(recipe.output)
    launch([str(SCRIPT), *arguments], processes=2)
    return {kind: (alone[kind], together[kind]) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_follow_the_curve_of_one(runs: dict[str, tuple[Run, Run]], kind: str) -> None:
    one, two = runs[kind]
    assert (one.manifest["hardware"]["processes"], two.manifest["hardware"]["processes"]) == (1, 2)
    exact, rounded = (
        ("step", "epoch", "learning_rate", "tokens"),
        ("loss", "grad_norm", "validation_loss"),
    )
    assert [line["step"] for line in one.log_lines() if "loss" in line] == list(range(1, STEPS + 1))
    for mine, theirs in zip(one.log_lines(), two.log_lines(), strict=True):
        assert [mine.get(key) for key in exact] == [theirs.get(key) for key in exact]
        assert [mine.get(key, 0) for key in rounded] == pytest.approx(
            [theirs.get(key, 0) for key in rounded], abs=1e-5
        )
    assert one.manifest["tokens_seen"] == two.manifest["tokens_seen"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_with_the_weights_of_one(
    runs: dict[str, tuple[Run, Run]], kind: str
) -> None:
    mine, theirs = (
        load_file(run.checkpoints / f"step-{STEPS:08d}" / "model.safetensors") for run in runs[kind]
    )
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-5, rtol=0, msg=name)
    start = load_file(runs[kind][0].checkpoints / "step-00000002" / "model.safetensors")
    assert max((start[name] - weight).abs().max() for name, weight in mine.items()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_evaluate_every_row_once_in_file_order(
    runs: dict[str, tuple[Run, Run]], kind: str
) -> None:
    mine, theirs = (
        [
            json.loads(line)
            for line in (run.eval_folder("validation") / "predictions.jsonl")
            .read_text(encoding="utf-8")
            .splitlines()
        ]
        for run in runs[kind]
    )
    assert (
        [record["id"] for record in mine] == [record["id"] for record in theirs] == list(range(7))
    )
    for one, two in zip(mine, theirs, strict=True):
        assert [
            one.get(key) for key in ("text", "source", "tokens", "gold", "prediction", "items")
        ] == [two.get(key) for key in ("text", "source", "tokens", "gold", "prediction", "items")]
        assert one["nll"] == pytest.approx(two["nll"], abs=1e-4)
    assert runs[kind][0].metrics("validation")["loss"] == pytest.approx(
        runs[kind][1].metrics("validation")["loss"], abs=1e-5
    )


def test_the_status_of_a_process_that_fails_is_passed_on_and_signals_mean_what_they_did() -> None:
    with pytest.raises(ProcessFailed) as failed:
        launch(["-c", "raise SystemExit(7)"], processes=2)
    assert failed.value.status == 7
    assert [signal.getsignal(number) for number in SIGNALS] == HANDLERS


def test_a_process_that_was_killed_is_named_and_not_those_that_miss_it() -> None:
    script = "import os, signal, time; os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)"
    with pytest.raises(ProcessFailed, match="process 1 was ended by SIGKILL") as failed:
        launch(["-c", script], processes=2)
    assert (failed.value.status, failed.value.is_killed) == (1, True)
    assert str(_failed({0: 1, 1: -signal.SIGKILL}, 0)) == str(failed.value)


def test_a_process_that_was_told_to_stop_is_not_called_killed() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        failed = _failed({0: 1, 1: -number}, 1)
        assert (failed.status, failed.is_killed) == (128 + number, False)
