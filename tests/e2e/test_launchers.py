"""torchrun and ``accelerate launch`` in front of the command: the run of one process, with another number of them.

One process trains the recipe until it loses patience. The same run is begun by one process and resumed by two, and
the other way round: data order, losses, decisions and weights have to be those of the first.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CPU, FSDP = (ROOT / f"recipes/accelerate/{name}.yaml" for name in ("cpu", "fsdp"))
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PORT = ["--main_process_port", "0"]
ACCELERATE = ["accelerate.commands.launch", "--config_file", str(CPU), *PORT]
HALF = 4
# accuracy is a whole number of rows, so rounding decides nothing; a large epsilon does not blow rounding up
OPTIONS = [
    "train.select_best=accuracy",
    "train.early_stopping=2",
    "train.eval_every=2",
    "train.dropout=0",
    "train.epsilon=1e-4",
]
OPTIONS += [
    "train.schedule=constant",
    "train.warmup=0",
    "train.learning_rate=3e-3",
    "train.batch_size=7",
    "logging.every=1",
]

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def launched() -> Launch:
    """Run ``python -m LAUNCHER... ARGUMENTS``; a hang is a failure."""

    def run(launcher: list[str], *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *launcher, *arguments],
            cwd=cwd,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=600,
        )

    return run


@pytest.fixture(scope="module")
def stories(
    project: Path, process: Any, launched: Launch, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The run by one process; from one to two by torchrun; from two by ``accelerate launch`` to one."""
    folder = tmp_path_factory.mktemp("runs")
    base = str(folder / "language")
    assert process("pretrain", "language.yaml", "-o", base, "-q", cwd=project).status == 0

    def finetune(name: str, steps: int, launcher: list[str] | None = None) -> None:
        command = [
            "finetune",
            "opinion.yaml",
            f"model.base={base}",
            *OPTIONS,
            f"train.max_steps={steps}",
            "--resume",
        ]
        command += ["-o", str(folder / name), "-q"]
        if launcher is None:
            ended = process(*command, cwd=project)
            assert ended.status == 0, ended.err
        else:
            run = launched(launcher, "-m", "lmkit", *command, cwd=project)
            assert run.returncode == 0, run.stderr

    finetune("one", 40)
    finetune("one to two", HALF)
    finetune("one to two", 40, TORCHRUN)
    finetune("two to one", HALF, ACCELERATE)
    assert (
        json.loads((folder / "two to one/manifest.json").read_text())["hardware"]["processes"] == 2
    )
    finetune("two to one", 40)
    finetune(
        "sharded",
        HALF,
        ["accelerate.commands.launch", "--config_file", str(FSDP), "--num_processes", "2", *PORT],
    )
    assert (
        json.loads((folder / "one to two/manifest.json").read_text())["hardware"]["processes"] == 2
    )
    return {name: folder / name for name in ("one", "one to two", "two to one", "sharded")}


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["one to two", "two to one"])
def test_resumed_by_another_number_of_processes_the_run_goes_on_as_it_would_have(
    stories: dict[str, Path], name: str
) -> None:
    mine, theirs = lines(stories["one"]), lines(stories[name])
    exact, rounded = (
        ("step", "epoch", "tokens", "learning_rate", "validation_accuracy"),
        ("loss", "grad_norm"),
    )
    assert [[line.get(key) for key in exact] for line in mine] == [
        [line.get(key) for key in exact] for line in theirs
    ]
    for one, other in zip(mine, theirs, strict=True):
        assert [one.get(key, 0) for key in rounded] == pytest.approx(
            [other.get(key, 0) for key in rounded], abs=1e-5
        )


@pytest.mark.parametrize("name", ["one to two", "two to one"])
def test_patience_ends_at_the_same_step_and_the_same_model_is_kept(
    stories: dict[str, Path], name: str
) -> None:
    from safetensors.torch import load_file

    one, other = (
        json.loads((stories[each] / "manifest.json").read_text()) for each in ("one", name)
    )
    assert HALF < one["steps"] < 40
    assert [one[key] for key in ("steps", "best_step", "tokens_seen")] == [
        other[key] for key in ("steps", "best_step", "tokens_seen")
    ]
    weights, found = (
        load_file(stories[each] / "model/model.safetensors") for each in ("one", name)
    )
    assert max(float((weight - found[key]).abs().max()) for key, weight in weights.items()) < 1e-5
    one, other = (
        json.loads((stories[each] / "eval/validation/metrics.json").read_text())
        for each in ("one", name)
    )
    assert one["metrics"]["accuracy"] == other["metrics"]["accuracy"]
    assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_the_configuration_that_shards_does_and_learns_the_same(stories: dict[str, Path]) -> None:
    hardware = json.loads((stories["sharded"] / "manifest.json").read_text())["hardware"]
    assert (hardware["processes"], hardware["sharded"]) == (2, True)
    mine, theirs = (lines(stories[each]) for each in ("one", "sharded"))
    for one, other in zip(mine, theirs, strict=False):
        assert [
            one.get(key) for key in ("step", "loss", "grad_norm", "validation_accuracy")
        ] == pytest.approx(
            [other.get(key) for key in ("step", "loss", "grad_norm", "validation_accuracy")],
            abs=1e-5,
        )
    assert theirs[-1]["step"] == HALF
    files = {path.name for path in (stories["sharded"] / f"checkpoints/step-{HALF:08d}").iterdir()}
    assert {"model-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"} < files


def test_a_configuration_for_deepspeed_is_refused_with_the_one_that_shards(
    process: Any, project: Path, tmp_path: Path
) -> None:
    """What ``accelerate launch`` sets for ``distributed_type: DEEPSPEED`` reaches the command in the environment."""
    ended = process(
        "pretrain",
        "language.yaml",
        "-o",
        str(tmp_path / "run"),
        cwd=project,
        env={"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    )
    assert ended.status == 2
    assert "asks for DeepSpeed, and lmkit shards by FSDP2 alone" in ended.err
    assert "recipes/accelerate/fsdp.yaml" in ended.err
    assert not (tmp_path / "run").exists()


def test_another_number_of_processes_than_the_recipe_wants_is_refused(
    project: Path, launched: Launch, tmp_path: Path
) -> None:
    run = launched(
        TORCHRUN,
        "-m",
        "lmkit",
        "pretrain",
        "language.yaml",
        "-o",
        str(tmp_path / "run"),
        "hardware.processes=3",
        cwd=project,
    )
    assert run.returncode != 0
    assert "hardware.processes: 2 processes run, not 3" in run.stderr
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.slow
def test_one_process_behind_accelerate_launch_trains(
    project: Path, launched: Launch, tmp_path: Path
) -> None:
    launcher = [
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
    ]
    options = ["-o", str(tmp_path / "run"), "train.max_steps=1", "hardware.processes=1", "--json"]
    run = launched(launcher, "-m", "lmkit", "pretrain", "language.yaml", *options, cwd=project)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["steps"] == 1


@pytest.mark.slow
def test_a_rank_that_fails_under_torchrun_ends_all_with_its_own_message(
    tiny: Any, launched: Launch, tmp_path: Path
) -> None:
    from lmkit.recipe.load import dump_recipe

    recipe = tiny.recipe(
        "classification", train={"max_steps": 9, "batch_size": 5}, hardware={"processes": 2}
    )
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    script = ROOT / "tests/contract/with_trouble_on_one_rank.py"
    begun = time.monotonic()
    run = launched(TORCHRUN, str(script), "failure", f"finetune={tmp_path / 'r.yaml'}", cwd=ROOT)
    assert run.returncode != 0
    assert "train.jsonl:7: a row that the second rank cannot read" in run.stderr
    assert time.monotonic() - begun < 600  # who is missed by the other one waits for half an hour
