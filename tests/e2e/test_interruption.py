"""A run that is killed, interrupted and resumed ends where the uninterrupted run ends, bit for bit.

References: transformers#11323, #33336.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

STEPS = 40
RECIPE = f"""
task: mlm
model: {{preset: bert-nano}}
tokenizer: {{train: {{algorithm: wordpiece, vocab_size: 300}}}}
data: {{train: raw.txt, validation_fraction: 0.2, max_length: 32}}
train: {{max_steps: {STEPS}, batch_size: 8, learning_rate: 1e-3, dropout: 0.1, eval_every: 8}}
hardware: {{precision: fp32, checkpoint_every: 2}}
eval: {{resamples: 0}}
logging: {{every: 1}}
"""


@dataclass
class Story:
    """What happened to the interrupted run: step at the signal, and how the process ended."""

    whole: Path
    broken: Path
    ends: list[tuple[str, int, str]] = field(default_factory=list)


def lines_of(run: Path) -> list[dict[str, Any]]:
    found = []
    for line in (
        (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").is_file() else []
    ):
        try:
            found.append(json.loads(line))
        except ValueError:  # just being written
            break
    return found


HOLD = """
import os, time
from lmkit.run import Run
append_log = Run.append_log
def append_and_wait(run, line):
    append_log(run, line)
    while line["step"] >= int(os.environ["HOLD_AT"]) and not os.path.exists(os.environ["RELEASE"]):
        time.sleep(0.005)
Run.append_log = append_and_wait
"""


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose sitecustomize lets no run come further than a step, until it has got its signal."""
    folder = tmp_path_factory.mktemp("hold")
    (folder / "sitecustomize.py").write_text(HOLD)
    return folder


def signal_after(
    running: subprocess.Popen[str], run: Path, step: int, number: signal.Signals, release: Path
) -> None:
    """Wait until a step is logged, then send the signal."""
    deadline = time.monotonic() + 600
    while running.poll() is None and time.monotonic() < deadline:
        if any(line["step"] >= step for line in lines_of(run)):
            running.send_signal(number)
            release.touch()
            return
        time.sleep(0.005)
    pytest.fail(f"the run ended before step {step}: {running.communicate()}")


@pytest.fixture(scope="module")
def story(
    project: Path, start: Callable[..., subprocess.Popen[str]], process: Any, hold: Path
) -> Story:
    """Killed, resumed and interrupted, resumed and killed, resumed to the end."""
    (project / "broken.yaml").write_text(RECIPE)
    told = Story(project / "runs/whole", project / "runs/broken")
    assert process("pretrain", "broken.yaml", "-o", "runs/whole", "-q", cwd=project).status == 0
    third = STEPS // 3
    for part, number in enumerate((signal.SIGKILL, signal.SIGINT, signal.SIGKILL)):
        step = part * third + random.randrange(3, third - 1)
        release = hold / f"release-{part}"
        env = {
            "PYTHONPATH": os.pathsep.join([str(hold), os.environ.get("PYTHONPATH", "")]),
            "HOLD_AT": str(step + 2),
            "RELEASE": str(release),
        }
        resume = ["--resume"] if part else []
        running = start("pretrain", "broken.yaml", *resume, cwd=project, env=env)
        signal_after(running, told.broken, step, number, release)
        _, err = running.communicate(timeout=600)
        told.ends.append((number.name, running.returncode, err))
    ended = process("pretrain", "broken.yaml", "--resume", cwd=project)
    told.ends.append(("finished", ended.status, ended.err))
    return told


def test_killed_and_resumed_run_has_the_same_weights_bit_for_bit(story: Story) -> None:
    assert story.ends[-1][:2] == ("finished", 0), story.ends
    weights = [run / "model/model.safetensors" for run in (story.whole, story.broken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_resumed_run_logs_the_same_losses_once(story: Story) -> None:
    times = {"tokens_per_second", "seconds", "data_wait"}
    logs = [
        [{k: v for k, v in line.items() if k not in times} for line in lines_of(run)]
        for run in (story.whole, story.broken)
    ]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[1] if "loss" in line] == list(range(1, STEPS + 1))


def test_resumed_run_counts_all_its_tokens(story: Story) -> None:
    manifests = [
        json.loads((run / "manifest.json").read_text()) for run in (story.whole, story.broken)
    ]
    assert manifests[0]["tokens_seen"] == manifests[1]["tokens_seen"]
    assert manifests[0]["best_step"] == manifests[1]["best_step"]


def test_interrupted_run_ends_with_130_after_a_checkpoint_and_says_how_to_go_on(
    story: Story,
) -> None:
    name, status, err = story.ends[1]
    assert (name, status) == ("SIGINT", 130)
    assert "--resume" in err
    assert "Traceback" not in err


def test_no_checkpoint_is_left_half_written(story: Story) -> None:
    names = {
        path.name
        for path in (story.broken / "checkpoints").iterdir()
        if not path.name.startswith(".")
    }
    for name in names:
        files = {path.name for path in (story.broken / "checkpoints" / name).iterdir()}
        assert files == {"SHA256SUMS", "model.safetensors", "optimizer.safetensors", "state.json"}


def test_old_checkpoints_are_dropped(story: Story) -> None:
    steps = sorted(
        int(path.name[5:])
        for path in (story.broken / "checkpoints").iterdir()
        if not path.name.startswith(".")
    )
    best = json.loads((story.broken / "manifest.json").read_text())["best_step"]
    assert steps == sorted({best, STEPS - 2, STEPS})


def test_terminated_run_ends_with_143(
    project: Path, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmkit.run import Run

    original = Run.append_log

    def append_then_terminate(run: Run, line: dict[str, Any]) -> None:
        original(run, line)
        if line["step"] == 1:  # a second one would act at once
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "append_log", append_then_terminate)
    ended = command(
        "pretrain", "language.yaml", "-o", str(tmp_path / "run"), "logging.every=1", cwd=project
    )
    assert (ended.status, [path.name for path in (tmp_path / "run/checkpoints").iterdir()]) == (
        143,
        ["step-00000002"],
    )
    assert not (tmp_path / "run/model").exists()
    monkeypatch.setattr(Run, "append_log", original)
    unfinished = command("predict", str(tmp_path / "run"), "the [MASK]", cwd=project)
    assert unfinished.status == 2
    assert "this run has no model: it did not finish" in unfinished.err


def test_resume_with_a_changed_recipe_is_refused_and_says_what_changed(
    project: Path, command: Any, tmp_path: Path
) -> None:
    options = ["-o", str(tmp_path / "run"), "-q"]
    assert command("pretrain", "language.yaml", *options, cwd=project).status == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    ended = command(
        "pretrain",
        "language.yaml",
        *options,
        "--resume",
        "train.learning_rate=1e-4",
        "seed=4",
        cwd=project,
    )
    assert ended.status == 2
    assert "started with other seed, train.learning_rate" in ended.err
    assert {
        path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()
    } == before


def test_resume_with_other_hardware_or_more_steps_goes_on(
    project: Path, command: Any, tmp_path: Path
) -> None:
    options = ["-o", str(tmp_path / "run"), "--json"]
    assert command("pretrain", "language.yaml", *options, cwd=project).status == 0
    more = ["train.max_steps=8", "hardware.micro_batch_tokens=64", "logging.every=1"]
    ended = command("pretrain", "language.yaml", *options, "--resume", *more, cwd=project)
    assert (ended.status, ended.json["steps"]) == (0, 8)
    assert (
        "max_steps: 8" in (tmp_path / "run/recipe.yaml").read_text()
    )  # running it again repeats the run


def test_resume_where_nothing_was_begun_starts(project: Path, command: Any, tmp_path: Path) -> None:
    ended = command(
        "pretrain",
        "language.yaml",
        "-o",
        str(tmp_path / "run"),
        "--resume",
        "train.max_steps=1",
        cwd=project,
    )
    assert ended.status == 0
    assert "starting at step 0" in ended.out


def test_resume_leaves_a_folder_that_is_no_run_alone(
    project: Path, command: Any, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for flag in ("--resume", "--overwrite"):
        ended = command("pretrain", "language.yaml", "-o", str(tmp_path), flag, cwd=project)
        assert (ended.status, [path.name for path in tmp_path.iterdir()]) == (2, ["thesis.txt"])
        assert "no recipe.yaml" in ended.err
