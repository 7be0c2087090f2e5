"""The end of memory is not the end of the run, and a gradient spike is what the recipe says it is."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmkit.data.plan import Plan
from lmkit.errors import TrainingStopped
from lmkit.models.memory import in_parts, is_out_of_memory
from lmkit.tasks.classification.task import Classification as Task
from lmkit.train import micro_batch

STEPS = 4
CPU_ERROR = "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"


def recipe_of(tiny: Any, **sections: Any) -> Any:
    train = {
        "max_steps": STEPS,
        "batch_size": 5,
        "eval_every": 2,
        "select_best": "loss",
        "learning_rate": 1e-2,
        "epsilon": 1e-4,
    }
    hardware = {"checkpoint_every": 2} | sections.pop("hardware", {})
    return tiny.recipe(
        "classification", train=train | sections.pop("train", {}), hardware=hardware, **sections
    )


class Memory:
    """A device with room for so many examples in a training pass, from a step on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int, *, after: int = 0):
        self.passes: list[int] = []
        loss = Task.loss

        def limited(task: Any, model: Any, batch: Any) -> Any:
            if not model.training:
                return loss(task, model, batch)
            self.passes.append(len(batch.labels))
            found = loss(task, model, batch)
            if len(self.passes) > after and len(batch.labels) > room:
                *_, last = model.parameters()
                hook = last.register_post_accumulate_grad_hook(lambda _: self.fall(hook))
            return found

        monkeypatch.setattr(Task, "loss", limited)

    def fall(self, hook: Any) -> None:
        """In the backward pass, when some gradients are there."""
        hook.remove()
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_runs_out_of_memory_ends_with_the_weights_of_one_that_does_not(
    tiny: Any, workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    roomy = tiny.fit(recipe_of(tiny))
    with monkeypatch.context() as patch:
        memory = Memory(patch, room=2, after=1)
        tight = tiny.fit(recipe_of(tiny, hardware={"workers": workers}))
    said = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert 1 <= len(said) <= 3
    assert all(
        line.startswith("warning: step 2: out of memory") for line in said
    )  # found once, kept for the rest of the run
    assert max(memory.passes[-2:]) <= 2
    ours, theirs = (
        load_file(run.checkpoints / f"step-{STEPS:08d}" / "model.safetensors")
        for run in (roomy, tight)
    )
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-5, rtol=0, msg=name)
    for one, other in zip(roomy.log_lines(), tight.log_lines(), strict=True):
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), abs=1e-5)
        assert one.get("tokens", 0) == other.get("tokens", 0)
    assert tight.manifest["micro_batch_tokens"] < roomy.manifest["micro_batch_tokens"] == 4096
    state = json.loads((tight.checkpoints / f"step-{STEPS:08d}" / "state.json").read_text())
    (chosen,) = (
        decision["chosen"]
        for decision in state["decisions"]
        if decision["key"] == "hardware.micro_batch_tokens"
    )
    assert chosen == tight.manifest["micro_batch_tokens"]


def test_a_resumed_run_begins_with_the_size_that_was_found(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Memory(monkeypatch, room=2)
    recipe = recipe_of(tiny, train={"max_steps": 2})
    tiny.fit(recipe)
    assert "out of memory" in capsys.readouterr().err
    tiny.fit(tiny.merged(recipe, train={"max_steps": STEPS}), resume=True)
    assert "out of memory" not in capsys.readouterr().err


def test_without_memory_for_one_example_the_run_ends_with_what_to_do(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Memory(monkeypatch, room=0)
    with pytest.raises(
        TrainingStopped,
        match=r"step 1: out of memory, with one example in each micro-batch\n.*gradient_checkpointing",
    ):
        tiny.fit(recipe_of(tiny))


def test_another_error_is_no_end_of_memory(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Task, "loss", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        tiny.fit(recipe_of(tiny))
    assert is_out_of_memory(RuntimeError(CPU_ERROR))
    assert not is_out_of_memory(ValueError(CPU_ERROR))


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="only glibc is told"
)
def test_memory_that_was_freed_serves_again_without_new_pages() -> None:
    program = """
import resource, torch
from lmkit.models.memory import keep_freed_memory
keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
found = []
for _ in range(20):  # the heap grows until it has a hole that is large enough with the bounds that blocks are aligned to
    before = faults()
    torch.ones(10**7)
    found.append(faults() - before)
print(min(found))
"""
    told = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert int(told) < 100  # of 9,766 pages


def test_evaluation_goes_on_in_halves() -> None:
    sizes = []

    def compute(numbers: Any) -> list[int]:
        sizes.append(len(numbers))
        if len(numbers) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * number for number in numbers]

    assert in_parts(compute, [1, 2, 3, 4, 5]) == [2, 4, 6, 8, 10]
    assert sizes == [5, 2, 3, 1, 2]


def test_sizes_are_tried_until_memory_ends(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny.recipe("classification", data={"max_rows": 100}, train={"batch_size": 100})
    setup = tiny.setup(recipe)
    longest = int(setup.encoded.slots(packed=False).max())
    monkeypatch.setattr(micro_batch, "SMALLEST", longest)
    monkeypatch.setattr(micro_batch, "GAIN", 0.0)
    Memory(monkeypatch, room=8)
    model = setup.model
    before = [parameter.clone() for parameter in model.parameters()]
    found = micro_batch.try_sizes(setup)
    assert found == 2 * longest == 8 * recipe.data.max_length
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------------------------- spikes


class Planted:
    """Makes the loss of some steps, counted from 1, a thousand times larger."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *steps: int):
        loss, self.count = Task.loss, 0

        def planted(task: Any, model: Any, batch: Any) -> Any:
            found = loss(task, model, batch)
            if not model.training:
                return found
            self.count += 1
            return found * 1000 if self.count in steps else found

        monkeypatch.setattr(Task, "loss", planted)


def test_a_spike_is_skipped_and_counted(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train = {
        "max_steps": 14,
        "eval_every": 99,
        "learning_rate": 1e-4,
        "on_spike": "skip",
        "spike_factor": 50,
    }
    Planted(monkeypatch, 13)
    run = tiny.fit(
        recipe_of(tiny, train=train, hardware={"checkpoint_every": 1, "keep_checkpoints": 9})
    )
    assert [line["skipped"] for line in run.log_lines() if "skipped" in line] == [0] * 12 + [1, 0]
    assert run.manifest["skipped_steps"] == 1
    weights = [
        load_file(run.checkpoints / f"step-{step:08d}" / "model.safetensors")
        for step in (12, 13, 14)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[1][name], weights[2][name]) for name in weights[0])
    norms = [line["grad_norm"] for line in run.log_lines() if "grad_norm" in line]
    assert json.loads((run.checkpoints / "step-00000014/state.json").read_text())["norms"] == norms


def test_a_spike_stops_the_run_with_its_rows(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train = {
        "max_steps": 14,
        "eval_every": 99,
        "learning_rate": 1e-4,
        "on_spike": "stop",
        "spike_factor": 50,
    }
    Planted(monkeypatch, 13)
    with pytest.raises(
        TrainingStopped,
        match=r"step 13: the gradient norm .* last good checkpoint is step 12\n.*spike-step-13\.jsonl",
    ):
        tiny.fit(recipe := recipe_of(tiny, train=train, hardware={"checkpoint_every": 4}))
    from lmkit.run import Run

    rows = [
        json.loads(line)
        for line in (Run(recipe.output).path / "spike-step-13.jsonl").read_text().splitlines()
    ]
    assert [row["id"] for row in rows] == sorted(Plan(10, 5, recipe.seed).examples(12).tolist())
