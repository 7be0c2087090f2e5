"""What a run is computed on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmkit.errors import RecipeError
from lmkit.recipe.schema import Hardware
from lmkit.train import device
from lmkit.train.device import (
    available_cores,
    build_accelerator,
    choose_precision,
    cpu_quota,
    micro_batch_tokens,
    share_of_cores,
)


def test_runs_of_one_python_process_may_differ_in_precision() -> None:
    found = [
        build_accelerator(Hardware(precision=precision)).mixed_precision
        for precision in ("fp32", "bf16", "bf16", "fp32")
    ]  # type: ignore[arg-type]
    assert found == ["no", "bf16", "bf16", "no"]


def test_precision_auto_is_the_chips(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(device, "native_bf16", lambda native=native: native)
        assert choose_precision(Hardware()) == expected
        assert choose_precision(Hardware(precision="fp32")) == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works there")
def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(RecipeError, match=r"hardware\.precision: fp16 needs a GPU"):
        choose_precision(Hardware(precision="fp16"))


def test_another_number_of_processes_than_asked_for_is_said() -> None:
    """Elsewhere two were asked for and one was quietly started."""
    with pytest.raises(RecipeError, match=r"hardware\.processes: 1 processes run, not 2"):
        build_accelerator(Hardware(precision="fp32", processes=2))


def test_tokens_of_a_pass_are_the_recipes_or_the_devices() -> None:
    cpu = torch.device("cpu")
    assert micro_batch_tokens(Hardware(micro_batch_tokens=77), cpu) == 77
    assert micro_batch_tokens(Hardware(), cpu) == 4096


def control_groups(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A machine's files, as the kernel shows them."""
    for name, text in {
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # a container of version 2
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        (
            "0::/job/step\n",
            {"job/cpu.max": "400000 100000\n", "job/step/cpu.max": "max 100000\n"},
            4.0,
        ),  # the group above
        (
            "3:cpuset:/\n2:cpu,cpuacct:/\n",
            {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2.0,
        ),
        (
            "2:cpu,cpuacct:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        (
            "2:cpu:/outside/name\n",
            {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        ("0::/\n", {}, None),
    ],
)
def test_the_quota_is_that_of_the_control_groups(
    tmp_path: Path, groups: str, files: dict[str, str], expected: float | None
) -> None:
    assert cpu_quota(control_groups(tmp_path, groups, files)) == expected


def test_cores_are_those_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for quota, expected in ((None, 8), (2.5, 2), (0.5, 1), (64.0, 8)):
        monkeypatch.setattr(device, "cpu_quota", lambda quota=quota: quota)
        assert available_cores() == expected


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_cores", lambda: 8)
    assert [share_of_cores(), share_of_cores(2), share_of_cores(99)] == [8, 4, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert share_of_cores() == 2


def test_there_are_no_more_threads_than_cores_unless_the_user_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, told = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    for cores, said, expected in ((2, None, [2]), (8, None, []), (2, "4", [])):
        monkeypatch.setattr(device, "available_cores", lambda cores=cores: cores)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if said is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", said)
        told.clear()
        build_accelerator(Hardware(precision="fp32"))
        assert told == expected
    monkeypatch.undo()
    assert torch.get_num_threads() == before
