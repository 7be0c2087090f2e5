"""``lmkit doctor``: the machine, and the proofs on the user's recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmkit.commands import proof
from lmkit.tasks.mlm.task import MaskedLanguageModeling


def test_the_proofs_hold_on_a_recipe(project: Path, command: Any) -> None:
    ended = command("doctor", "language.yaml", "--json", cwd=project)
    assert ended.status == 0, ended.err
    assert ended.json["ok"]
    proofs = {entry["varied"]: entry for entry in ended.json["proofs"]}
    assert list(proofs) == [
        "micro-batch: one example",
        "micro-batch: the recipe's",
        "packed, one example",
        "packed, all at once",
        "loader workers: 2",
        "processes: 2",
        "evaluation batch: one example",
        "evaluation batch: the recipe's",
    ]
    assert {entry["verdict"] for entry in proofs.values()} == {"ok"}
    assert max(entry["gradients"] or 0 for entry in proofs.values()) <= 1e-5
    assert proofs["processes: 2"]["gradients"] > 0


def test_a_proof_that_fails_is_said_and_ends_with_1(
    project: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is averaged within the micro-batch, as in transformers#34191."""
    summed = MaskedLanguageModeling.loss

    def averaged(task: Any, model: Any, batch: Any) -> torch.Tensor:
        return summed(task, model, batch) / batch.items

    monkeypatch.setattr(MaskedLanguageModeling, "loss", averaged)
    monkeypatch.setattr(proof, "_two_processes", lambda *_: proof.Proof.skipped("processes: 2", ""))
    ended = command("doctor", "language.yaml", cwd=project)
    assert ended.status == 1
    assert "a proof failed" in ended.err
    verdicts = [line.split() for line in ended.out.splitlines() if line.startswith("micro-batch")]
    assert "FAILED" in verdicts[0]
    assert "Traceback" not in ended.err


def test_the_machine_is_described_with_the_kernels_that_are_installed(
    project: Path, command: Any
) -> None:
    ended = command("doctor", "--json", cwd=project)
    assert ended.json["kernels"].keys() == {"flash-attn", "liger-kernel"}


@pytest.mark.slow
def test_resuming_is_proven_on_a_recipe(project: Path, command: Any) -> None:
    ended = command(
        "doctor", "language.yaml", "--resume", "--kills", "2", "--seed", "3", "--json", cwd=project
    )
    assert (ended.status, ended.json["ok"], ended.json["seed"]) == (0, True, 3)


def test_resume_needs_a_recipe(project: Path, command: Any) -> None:
    ended = command("doctor", "--resume", cwd=project)
    assert ended.status == 2
    assert "lmkit doctor RECIPE --resume" in ended.err
