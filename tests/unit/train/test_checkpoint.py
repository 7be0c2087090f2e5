"""Checkpoints that are damaged, that find no room, and that are written while training goes on."""

from __future__ import annotations

import errno
import hashlib
import json
import resource
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from lmkit.errors import ModelError, TrainingStopped
from lmkit.run import Run
from lmkit.train import checkpoint, writer
from lmkit.train.checkpoint import (
    MOMENTS,
    STATE,
    SUMS,
    WEIGHTS,
    Stored,
    checkpoint_steps,
    name_of,
    newest_whole,
    part_of,
)
from lmkit.train.parallelism.fsdp import FullySharded
from lmkit.train.parallelism.replicated import Single
from lmkit.train.writer import Writer

CPU = torch.device("cpu")
ALONE = Single(SimpleNamespace(num_processes=1, device=CPU))


class Trained:
    """A model of 400 numbers with the moments of one step."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(3, 100)  # the matrix is larger than what is always copied
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.train()

    def train(self) -> None:
        self.model(torch.ones(1, 3)).sum().backward()
        self.optimizer.step()

    def save(self, to: Writer, step: int) -> None:
        to.save(step, self.model, self.optimizer, {"best_step": None}, lambda: None)


@pytest.fixture
def trained() -> Trained:
    return Trained()


@pytest.fixture
def run(tmp_path: Path, trained: Trained) -> Run:
    """Two checkpoints."""
    run = Run(tmp_path)
    with Writer(run, ALONE) as into:
        for step in (1, 2):
            trained.save(into, step)
            trained.train()
        into.wait()
    return run


def test_the_sums_are_those_of_the_files(run: Run) -> None:
    folder = run.checkpoints / name_of(2)
    sums = dict(reversed(line.split("  ")) for line in (folder / SUMS).read_text().splitlines())
    assert sums == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (WEIGHTS, MOMENTS, STATE)
    }


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def corrupted(path: Path) -> None:
    """One bit of the last byte but one: the file still opens."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncated, corrupted, Path.unlink])
@pytest.mark.parametrize("file", [WEIGHTS, MOMENTS, STATE, SUMS])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(
    run: Run, file: str, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert newest_whole(run) == 2
    path = run.checkpoints / name_of(2) / file
    damage(path)
    assert newest_whole(run) == 1
    told = capsys.readouterr().err
    assert str(path.parent) in told
    assert "taking the checkpoint before" in told


def test_the_weights_of_the_best_checkpoint_are_verified_too(run: Run, trained: Trained) -> None:
    corrupted(run.checkpoints / name_of(1) / WEIGHTS)
    with pytest.raises(ModelError, match="not what was written"):
        checkpoint.load_weights(run, 1, trained.model, ALONE)


def test_what_was_not_finished_is_removed(run: Run) -> None:
    (run.checkpoints / ".step-00000003.77.tmp").mkdir()
    checkpoint.drop_unfinished(run)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [name_of(1), name_of(2)]


# ---------------------------------------------------------------------------------- in parts


@pytest.fixture
def parts(tmp_path: Path) -> Run:
    """A checkpoint by three processes: five rows of two numbers, of which the last has one; and a number of the first's."""
    run, rows = Run(tmp_path), torch.arange(10.0).view(5, 2)
    folder = run.checkpoints / name_of(1)
    folder.mkdir(parents=True)
    for rank in range(3):
        tensors = {"rows": rows[2 * rank : 2 * rank + 2].clone()} | (
            {"step": torch.tensor(7.0)} if rank == 0 else {}
        )
        for kind in (WEIGHTS, MOMENTS):
            safetensors.torch.save_file(tensors, folder / part_of(kind, rank, 3))
    (folder / STATE).write_text("{}")
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
    ]
    (folder / SUMS).write_text("".join(sums))
    return run


@pytest.mark.parametrize("rows", [(0, 5), (1, 4), (2, 4), (4, 5), (5, 5)])
def test_rows_are_read_from_whatever_files_hold_them(parts: Run, rows: tuple[int, int]) -> None:
    stored = Stored(parts.checkpoints / name_of(1), WEIGHTS)
    assert stored.shapes == {"rows": [5, 2], "step": []}
    assert torch.equal(stored.read("rows", rows), torch.arange(10.0).view(5, 2)[slice(*rows)])
    assert torch.equal(stored.read("rows"), torch.arange(10.0).view(5, 2))
    assert stored.read("step") == 7


@pytest.mark.parametrize("damage", [truncated, corrupted, Path.unlink])
@pytest.mark.parametrize("kind", [WEIGHTS, MOMENTS])
def test_a_damaged_part_is_found(parts: Run, kind: str, damage: Any) -> None:
    assert newest_whole(parts) == 1
    damage(parts.checkpoints / name_of(1) / part_of(kind, 1, 3))
    assert newest_whole(parts) is None


def test_a_part_that_the_sums_do_not_name_is_missed(parts: Run) -> None:
    sums = parts.checkpoints / name_of(1) / SUMS
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if part_of(WEIGHTS, 0, 3) not in line))
    assert newest_whole(parts) is None


# ---------------------------------------------------------------------------------- beside training


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Files are written only once the event is set."""
    may_write, save = threading.Event(), safetensors.torch.save_file

    def wait_and_save(*arguments: Any, **options: Any) -> None:
        assert may_write.wait(20)
        save(*arguments, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", wait_and_save)
    return may_write


@pytest.fixture
def as_one_of_several() -> Iterator[Any]:
    """A process group of one."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield FullySharded(SimpleNamespace(num_processes=1, device=CPU, is_main_process=True))
    torch.distributed.destroy_process_group()


def test_training_goes_on_while_the_weights_of_the_step_are_written(
    tmp_path: Path, trained: Trained, held: threading.Event
) -> None:
    run, at_the_step = Run(tmp_path), trained.model.weight.detach().clone()
    with Writer(run, ALONE) as into:
        trained.save(into, 1)  # returns though nothing can be written
        trained.train()
        assert checkpoint_steps(run) == []
        held.set()
        into.wait()
    assert checkpoint_steps(run) == [1]
    stored = safetensors.torch.load_file(run.checkpoints / name_of(1) / WEIGHTS)
    assert torch.equal(stored["weight"], at_the_step)
    assert not torch.equal(stored["weight"], trained.model.weight)


def test_so_it_does_while_several_processes_write_their_rows(
    tmp_path: Path, trained: Trained, held: threading.Event, as_one_of_several: Any
) -> None:
    run = Run(tmp_path)
    with Writer(run, as_one_of_several) as into:
        trained.save(into, 1)
        assert checkpoint_steps(run) == []
        held.set()
        into.wait()
    assert checkpoint_steps(run) == [1]
    assert (run.checkpoints / name_of(1) / part_of(WEIGHTS, 0, 1)).exists()
    assert into._group is None  # nothing of it outlives the steps


def test_where_a_copy_would_fill_the_memory_it_is_written_at_once(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_free_memory", lambda: 1000)
    into = Writer(Run(tmp_path), ALONE)
    trained.save(into, 1)
    assert checkpoint_steps(into.run) == [1]


def test_what_is_being_written_is_finished_after_an_error(
    tmp_path: Path, trained: Trained, held: threading.Event
) -> None:
    def train() -> None:
        with Writer(run, ALONE) as into:
            trained.save(into, 1)
            threading.Timer(0.1, held.set).start()
            raise TrainingStopped

    run = Run(tmp_path)
    with pytest.raises(TrainingStopped):
        train()
    assert checkpoint_steps(run) == [1]


def test_leaving_at_once_does_not_wait_for_what_is_being_written(
    tmp_path: Path, trained: Trained, held: threading.Event
) -> None:
    into = Writer(Run(tmp_path), ALONE)

    def train() -> None:
        with into:
            trained.save(into, 1)
            raise KeyboardInterrupt  # the second one

    with pytest.raises(KeyboardInterrupt):
        train()
    assert into._thread is not None
    assert into._thread.is_alive()
    held.set()
    into.wait()


def test_an_error_of_the_thread_is_raised_at_the_next_checkpoint(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    into = Writer(Run(tmp_path), ALONE)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_checkpoint", fail)
        trained.save(into, 1)
    with pytest.raises(PermissionError):
        trained.save(into, 2)


# ---------------------------------------------------------------------------------- a full disk


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """The system refuses to make a file longer than this, as with a quota."""
    limits, handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(
    run: Run, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    with Writer(run, ALONE) as into:
        with room_for(500):
            trained.save(into, 3)
            into.wait()
        told = capsys.readouterr().err
        assert str(run.checkpoints / name_of(3)) in told
        assert "needs 4,808 bytes" in told  # 400 numbers thrice, and two counts of steps
        assert "the one of step 2 stays" in told
        assert sorted(path.name for path in run.checkpoints.iterdir()) == [name_of(1), name_of(2)]
        trained.save(into, 4)  # there is room again
        into.wait()
    assert (checkpoint_steps(run), newest_whole(run), into.lost) == ([1, 2, 4], 4, {3})


@pytest.mark.parametrize(("lost", "ends_well"), [(2, True), (4, True), (6, False)])
def test_a_run_goes_on_without_a_checkpoint_but_not_without_the_last(
    tiny: Any, lost: int, ends_well: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the lost one was the best so far: then the best one of the others is."""
    recipe = tiny.recipe(
        "mlm",
        train={"max_steps": 6, "eval_every": 2, "select_best": "loss", "learning_rate": 1e-2},
        hardware={"checkpoint_every": 2, "keep_checkpoints": 9},
    )
    write = writer.write_checkpoint

    def full(run: Run, step: int, *rest: Any) -> Path:
        if step == lost:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(run, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_checkpoint", full)
        if ends_well:
            run = tiny.fit(recipe)
        else:
            with pytest.raises(TrainingStopped, match="the disk is full, the last checkpoint"):
                tiny.fit(recipe)
            run = Run(recipe.output)
            assert not run.model.exists()
    assert checkpoint_steps(run) == [step for step in (2, 4, 6) if step != lost]
    for step in checkpoint_steps(run):
        state = json.loads((run.checkpoints / name_of(step) / STATE).read_text())
        assert state["best_step"] in checkpoint_steps(run) or state["best_step"] is None
    if not ends_well:
        shutil.rmtree(run.checkpoints / name_of(4))
        assert tiny.fit(recipe, resume=True).is_finished
