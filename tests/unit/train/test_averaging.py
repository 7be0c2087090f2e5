"""The model as the mean of the last checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmkit.train import session
from lmkit.train.checkpoint import averaged, checkpoint_steps, name_of


@pytest.mark.parametrize(
    ("steps", "best", "expected"),
    [
        ([2, 4, 6, 7], None, [4, 6, 7]),
        ([2, 4, 6, 7], 6, [2, 4, 6]),
        ([2, 3, 4, 5, 6, 7], 4, [2, 4]),
        ([7], 7, [7]),
    ],
)
def test_evaluations_up_to_the_best_one_are_averaged(
    steps: list[int], best: int | None, expected: list[int]
) -> None:
    assert averaged(steps, 3, every=2, last=7, best=best) == expected
    assert averaged(steps, None, every=2, last=7, best=best) == []


def test_the_model_is_the_mean_of_the_last_checkpoints_up_to_the_best(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.9, 0.8, 0.5, 0.7, 0.7, 0.7])
    monkeypatch.setattr(session, "validate", lambda *arguments, **options: next(values))
    recipe = tiny.recipe(
        "translation",
        train={"max_steps": 12, "eval_every": 2, "select_best": "loss", "average_checkpoints": 3},
        hardware={"keep_checkpoints": 1, "checkpoint_every": 1},
    )
    run = tiny.fit(recipe)
    assert (run.manifest["best_step"], run.manifest["averaged_steps"]) == (6, [2, 4, 6])
    # what the mean needed was kept, however few are to be kept; whatever lies between went
    assert checkpoint_steps(run) == [2, 4, 6, 8, 10, 12]
    stored = [
        load_file(run.checkpoints / name_of(step) / "model.safetensors") for step in (2, 4, 6)
    ]
    model = load_file(run.model / "model.safetensors")
    moved = 0.0
    for name, last in stored[-1].items():
        mean = (torch.stack([weights[name].double() for weights in stored]).mean(0)).float()
        torch.testing.assert_close(model[name], mean, atol=1e-7, rtol=0)
        moved += float((mean - last).abs().sum())
    assert moved > 0.1


def test_fewer_evaluations_than_asked_for_are_all_averaged(
    tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny.recipe(
        "classification", train={"average_checkpoints": 5, "select_best": "last", "eval_every": 1.0}
    )
    run = tiny.fit(recipe)
    assert run.manifest["averaged_steps"] == [2]
    assert (
        "train.average_checkpoints: 5, but there were only 1 evaluations" in capsys.readouterr().err
    )
