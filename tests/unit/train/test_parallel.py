"""What several processes need before and beside the steps."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmkit.commands.train import train
from lmkit.errors import RecipeError
from lmkit.recipe.schema import Hardware
from lmkit.train import fit as fitting
from lmkit.train import launch as launching
from lmkit.train import parallelism
from lmkit.train import prepare as preparing
from lmkit.train.device import asks_to_shard, build_accelerator
from lmkit.train.launch import ProcessFailed
from lmkit.train.parallelism.fsdp import _layers, check_sharding
from lmkit.train.parallelism.replicated import Replicated


@pytest.mark.parametrize("name", ["DeepSpeed", "Megatron_LM", "Parallelism_Config"])
def test_a_configuration_that_asks_for_what_lmkit_does_not_do_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training would go on without it."""
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    with pytest.raises(RecipeError, match=r"by FSDP2 alone\n  recipes/accelerate/fsdp\.yaml"):
        build_accelerator(Hardware(precision="fp32"))


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version: FSDP 1 is not supported"),
        (
            {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "fsdp_offload_params: lmkit does not do this",
        ),
        (
            {"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "fsdp_activation_checkpointing: lmkit does not do this",
        ),
    ],
)
def test_of_fsdp_what_lmkit_does_not_do_is_refused(
    setting: dict[str, str], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {"ACCELERATE_USE_FSDP": "true", **setting}.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError, match=place):
        build_accelerator(Hardware(precision="fp32"))


def test_accelerate_does_not_shard_behind_lmkit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does transformers load weights on the first process alone."""
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    for variable, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(variable, value)
    assert build_accelerator(Hardware(precision="fp32")).distributed_type.value == "NO"
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    assert asks_to_shard()


@pytest.mark.parametrize(
    ("sections", "place"),
    [
        ({"train": {"optimizer": "adafactor"}}, "train.optimizer"),
        (
            {"model": {"config": {"model_type": "bart", "encoder_layerdrop": 0.1}}},
            "model.config.encoder_layerdrop",
        ),
    ],
)
def test_what_does_not_go_with_sharding_is_refused_by_its_key(
    tiny: Any, sections: dict[str, Any], place: str
) -> None:
    recipe = tiny.recipe("translation", "bart" if "model" in sections else None, **sections)
    with pytest.raises(RecipeError) as refused:
        check_sharding(recipe, tiny.model(recipe))
    assert refused.value.place == place


def test_layers_are_units_unless_they_share_weights_with_something(tiny: Any) -> None:
    model = tiny.model(tiny.recipe("mlm"))
    layers = list(model.bert.encoder.layer)
    assert _layers(model) == layers
    layers[0].output.dense.weight = layers[1].output.dense.weight
    assert _layers(model) == []


def test_data_are_prepared_before_the_process_group(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere one process tokenises and the others' collectives time out [LLaMA-Factory#2424]."""
    order = []
    for owner, name in ((fitting, "prepare"), (parallelism, "build_accelerator")):
        original = getattr(owner, name)

        def noted(
            *arguments: Any, _name: str = name, _original: Any = original, **options: Any
        ) -> Any:
            order.append(_name)
            return _original(*arguments, **options)

        monkeypatch.setattr(owner, name, noted)
    tiny.fit(tiny.recipe("classification"))
    assert order == ["prepare", "build_accelerator"]


def test_every_process_starts_from_the_first_ones_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.BatchNorm1d(3)
    several: Any = SimpleNamespace(num_processes=2, prepare_model=lambda model, **_: model)
    monkeypatch.setattr(
        torch.distributed, "broadcast", lambda tensor, source: tensor.fill_(7 + source)
    )
    Replicated(several).prepare(model)
    assert all((tensor == 7).all() for tensor in model.state_dict().values())


def test_the_process_that_starts_the_others_prepares_the_data_first(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def start(*_: Any, processes: int) -> None:
        order.append(f"{processes} processes")
        raise ProcessFailed(7)

    monkeypatch.setattr(launching, "launch", start)
    monkeypatch.setattr(preparing, "prepare", lambda *_: order.append("prepare"))
    with pytest.raises(ProcessFailed):
        train("finetune", tiny.recipe("classification", hardware={"processes": 2}))
    assert order == ["prepare", "2 processes"]


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_an_old_run_is_left_to_the_first_of_the_processes(
    flag: str, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the lock, and knows whether the new run can begin."""
    recipe, given = tiny.recipe("classification", hardware={"processes": 2}), []

    def start(arguments: list[str], *, processes: int) -> None:
        given.extend(arguments)
        raise ProcessFailed(7)

    monkeypatch.setattr(launching, "launch", start)
    monkeypatch.setattr(preparing, "prepare", lambda *_: None)
    old = Path(recipe.output) / "recipe.yaml"
    old.parent.mkdir(parents=True)
    old.touch()
    with pytest.raises(ProcessFailed):
        train("finetune", recipe, **{flag: True})
    assert old.is_file()
    assert [argument for argument in given if argument in ("--resume", "--overwrite")] == [
        f"--{flag}"
    ]


def test_a_process_that_was_killed_is_said_with_what_to_do(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*_: Any, processes: int) -> None:
        raise ProcessFailed(1, killed=(1, 9))

    monkeypatch.setattr(launching, "launch", start)
    monkeypatch.setattr(preparing, "prepare", lambda *_: None)
    with pytest.raises(ProcessFailed):
        train("finetune", tiny.recipe("classification", hardware={"processes": 2}))
    assert (
        "process 1 was ended by SIGKILL; often the memory is full\n  --resume goes on"
        in capsys.readouterr().err
    )
