"""SIGKILL, also while a checkpoint is being written, and processes that die: the run is resumed bit by bit, or ends with a message.

The runs are forked from this process, so that each costs no start of torch.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from safetensors.torch import load_file

from lmkit.commands.proof import COMPARED
from lmkit.errors import TrainingStopped
from lmkit.flow.proof_processes import logged_step
from lmkit.run import Run
from lmkit.tasks.mlm.task import MaskedLanguageModeling
from lmkit.train.checkpoint import checkpoint_steps

STEPS = 8


def recipe_of(tiny: Any) -> Any:
    return tiny.recipe(
        "mlm",
        train={
            "max_steps": STEPS,
            "batch_size": 3,
            "dropout": 0.2,
            "eval_every": 3,
            "select_best": "loss",
        },
        hardware={
            "checkpoint_every": 2,
            "keep_checkpoints": 3,
            "micro_batch_tokens": 64,
            "workers": 2,
        },
    )


@pytest.fixture(scope="module")
def whole(tiny: Any) -> Run:
    run: Run = tiny.fit(recipe_of(tiny))
    return run


def in_a_fork(tiny: Any, recipe: Any) -> Any:
    """A process that trains, or resumes, the recipe; in a group with its loader workers."""

    def train() -> None:
        os.setsid()
        tiny.fit(recipe, resume=True)

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    return process


def assert_same(run: Run, other: Run) -> None:
    for name, content in COMPARED.items():
        assert content(run) == content(other), name
    assert run.manifest["best_step"] == other.manifest["best_step"]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_is_the_uninterrupted_one_every_time(
    tiny: Any, whole: Run, kills: int
) -> None:
    moments = random.Random(kills)
    landed = set()
    for kill in range(kills + 20):  # more where a slow machine lets all of them land on one step
        if kill >= kills and len(landed) > 1:
            break
        recipe = recipe_of(tiny)
        run = Run(recipe.output)
        step, delay = moments.randrange(STEPS), moments.random() * 0.05
        process = in_a_fork(tiny, recipe)
        while process.is_alive() and logged_step(run) < step:
            time.sleep(0.001)
        time.sleep(delay)
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet, or is done
            process.kill()
        process.join()
        landed.add(logged_step(run))
        assert_same(tiny.fit(recipe, resume=True), whole)
    assert len(landed) > 1


def test_a_run_killed_while_a_checkpoint_is_written_goes_on_from_the_one_before(
    tiny: Any, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, save = recipe_of(tiny), safetensors.torch.save_file

    def half(tensors: Any, path: Path) -> None:
        save(tensors, path)
        if "step-00000006" in str(path) and path.name.startswith("optimizer"):
            path.write_bytes(path.read_bytes()[:99])
            os.killpg(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", half)
        process = in_a_fork(tiny, recipe)
        process.join()
    run = Run(recipe.output)
    assert process.exitcode == -signal.SIGKILL
    assert 6 not in checkpoint_steps(run)
    assert list(run.checkpoints.glob(".step-00000006.*"))
    assert_same(tiny.fit(recipe, resume=True), whole)
    assert not list(run.checkpoints.glob(".*"))


def test_a_loader_worker_that_dies_ends_the_run_with_a_message(
    tiny: Any, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, collate, main = recipe_of(tiny), MaskedLanguageModeling.collate, os.getpid()

    def die(task: Any, *arguments: Any, **options: Any) -> Any:
        if os.getpid() != main and options["epoch"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return collate(task, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MaskedLanguageModeling, "collate", die)
        with pytest.raises(
            TrainingStopped,
            match=r"(?s)prepares batches died: DataLoader worker .*fewer hardware.workers",
        ):
            tiny.fit(recipe)
    assert_same(tiny.fit(recipe, resume=True), whole)


def test_weights_are_compared_at_all(whole: Run) -> None:
    (file,) = whole.model.glob("*.safetensors")
    assert sum(tensor.numel() for tensor in load_file(file).values()) > 1000
