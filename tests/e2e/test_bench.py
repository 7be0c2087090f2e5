"""``lmkit bench RECIPE``: measured in processes of their own, and nothing changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_a_recipe_is_measured_and_nothing_is_changed(project: Path, process: Any) -> None:
    before = {path for path in project.rglob("*") if "runs" not in path.parts}
    options = ("--seconds", "0.2", "--try", "hardware.workers=1", "--json")
    ended = process("bench", "language.yaml", "output=runs/benched", *options, cwd=project)
    assert ended.status == 0, ended.err
    found = ended.json
    assert (found["recipe"], found["task"], found["precision"], found["workers"]) == (
        "language",
        "mlm",
        "fp32",
        "auto",
    )
    positive = (
        "tokens_per_second",
        "peak_memory_bytes",
        "matmul_flops_per_second",
        "flops_per_token",
        "seconds_per_epoch",
    )
    assert all(found[key] > 0 for key in positive)
    assert 0 < found["share_of_peak"] < 1
    assert 0 <= found["data_wait"] < 1
    assert 0 <= found["padding"] < 1
    assert (
        0 < found["seconds_in_all"] <= 1.2 * found["seconds_per_epoch"]
    )  # six steps, and the last of an epoch has fewer rows
    (row,) = found["settings"]
    assert row["set"] == {"hardware.workers": 1}
    assert row["verdict"] in ("faster", "no difference", "slower")
    assert row["low"] <= row["ratio"] <= row["high"]
    assert {path for path in project.rglob("*") if "runs" not in path.parts} == before
    assert not (project / "runs/benched").exists()


def test_a_setting_that_cannot_be_had_is_said_and_the_others_are_measured(
    project: Path, process: Any
) -> None:
    ended = process(
        "bench",
        "language.yaml",
        "--seconds",
        "0.1",
        "--try",
        "hardware.precision=fp16",
        "--json",
        cwd=project,
    )
    assert ended.status == 0, ended.err
    (row,) = ended.json["settings"]
    assert (row["verdict"], "fp16 needs a GPU" in row["note"]) == ("failed", True)
    assert "Traceback" not in ended.err


def test_what_the_recipe_itself_cannot_have_is_a_mistake(project: Path, process: Any) -> None:
    ended = process("bench", "language.yaml", "hardware.precision=fp16", cwd=project)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("lmkit: hardware.precision: fp16 needs a GPU")
