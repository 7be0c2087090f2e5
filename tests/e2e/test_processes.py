"""Several processes behind one command: ``hardware.processes=2``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def two(project: Path, process: Any) -> tuple[Path, Any]:
    ended = process(
        "pretrain", "language.yaml", "-o", "runs/two", "hardware.processes=2", "--json", cwd=project
    )
    return project / "runs/two", ended


def test_two_processes_print_one_json_object(two: tuple[Path, Any]) -> None:
    ended = two[1]
    assert ended.status == 0, ended.err
    assert (ended.json["run"], ended.json["processes"], ended.json["steps"]) == ("runs/two", 2, 6)
    assert ended.err.count("done in") == 1


def test_manifest_says_how_many_processes_ran_and_what_the_user_typed(
    two: tuple[Path, Any],
) -> None:
    manifest = json.loads((two[0] / "manifest.json").read_text())
    assert manifest["hardware"]["processes"] == 2
    assert manifest["command"][1:] == [
        "pretrain",
        "language.yaml",
        "-o",
        "runs/two",
        "hardware.processes=2",
        "--json",
    ]


def test_two_processes_learn_the_same_as_one(
    two: tuple[Path, Any], project: Path, command: Any, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    # dropout draws other noise in each process
    ended = command("pretrain", "language.yaml", "-o", str(tmp_path / "one"), "--json", cwd=project)
    logs = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (two[0], tmp_path / "one")
    ]
    assert ended.json["tokens"] == two[1].json["tokens"]
    for mine, theirs in zip(*logs, strict=True):
        assert mine.get("loss", 0) == pytest.approx(theirs.get("loss", 0), rel=0.02)
    names = [set(load_file(run / "model/model.safetensors")) for run in (two[0], tmp_path / "one")]
    assert names[0] == names[1]
