"""What several processes need before and beside the steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmkit.commands.train import train
from lmkit.errors import RecipeError
from lmkit.recipe.schema import Hardware
from lmkit.train import fit as fitting
from lmkit.train import launch as launching
from lmkit.train import prepare as preparing
from lmkit.train.device import build_accelerator
from lmkit.train.launch import ProcessFailed
from lmkit.train.parallel import prepare_parallel


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_configuration_that_shards_is_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoints would hold parts of the weights."""
    monkeypatch.setenv(variable, "true")
    with pytest.raises(RecipeError, match="lmkit does not shard models"):
        build_accelerator(Hardware(precision="fp32"))


def test_data_are_prepared_before_the_process_group(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere one process tokenises and the others' collectives time out (promise 20) [LLaMA-Factory#2424]."""
    order = []
    for name in ("prepare", "build_accelerator"):
        original = getattr(fitting, name)

        def noted(*arguments: Any, _name: str = name, _original: Any = original, **options: Any) -> Any:
            order.append(_name)
            return _original(*arguments, **options)

        monkeypatch.setattr(fitting, name, noted)
    tiny.fit(tiny.recipe("classification"))
    assert order == ["prepare", "build_accelerator"]


def test_every_process_starts_from_the_first_ones_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.BatchNorm1d(3)
    several: Any = SimpleNamespace(num_processes=2, prepare_model=lambda model, **_: model, prepare_optimizer=lambda given: given)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: tensor.fill_(7 + source))
    prepare_parallel(several, model, None)
    assert all((tensor == 7).all() for tensor in model.state_dict().values())


def test_the_process_that_starts_the_others_prepares_the_data_first(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def start(*_: Any, processes: int) -> None:
        order.append(f"{processes} processes")
        raise ProcessFailed(7)

    monkeypatch.setattr(launching, "launch", start)
    monkeypatch.setattr(preparing, "prepare", lambda *_: order.append("prepare"))
    with pytest.raises(ProcessFailed):
        train("finetune", tiny.recipe("classification", hardware={"processes": 2}))
    assert order == ["prepare", "2 processes"]
