"""Which settings are tried beside a recipe, and what is said of them. What is measured: tests/unit/train/test_trial.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lmkit.commands import bench
from lmkit.commands.bench import (
    BenchReport,
    Speed,
    TriedSetting,
    choices,
    combined,
    fastest,
    verdict,
)
from lmkit.errors import RecipeError
from lmkit.recipe import load_recipe
from lmkit.train.measurements import TrialFacts, Turn

FACTS = TrialFacts(
    device="cpu",
    threads=1,
    parameters={"trained": 10, "total": 2000},
    precision="fp32",
    native_bf16=False,
    micro_batch_tokens=128,
    other_micro_batches=[],
    packing=False,
    attention="SDPA",
    kernels="PyTorch's",
    workers=0,
    examples=100,
    examples_a_micro_batch=4,
    steps=10,
)


def recipe(**sections: Any) -> Any:
    return load_recipe({"task": "mlm", **sections})


@pytest.mark.parametrize(
    ("facts", "waiting", "hardware", "expected"),
    [
        ({}, 0.0, {}, []),
        ({"native_bf16": True}, 0.0, {}, [{"hardware.precision": "bf16"}]),
        ({"native_bf16": True, "precision": "bf16"}, 0.0, {}, [{"hardware.precision": "fp32"}]),
        (
            {"other_micro_batches": [64, 256]},
            0.0,
            {},
            [{"hardware.micro_batch_tokens": 64}, {"hardware.micro_batch_tokens": 256}],
        ),
        ({"packing": True}, 0.0, {}, [{"hardware.packing": "off"}]),
        ({}, 0.0, {"packing": "off"}, [{"hardware.packing": "auto"}]),
        ({"attention": "FlashAttention, PyTorch's"}, 0.0, {}, [{"hardware.attention": "sdpa"}]),
        ({"kernels": "Liger's"}, 0.0, {}, [{"hardware.kernels": "torch"}]),
        ({}, 0.0, {"gradient_checkpointing": True}, [{"hardware.gradient_checkpointing": False}]),
        ({}, 0.0, {"compile": "on"}, [{"hardware.compile": "off"}]),
        ({"device": "a GPU"}, 0.0, {}, [{"hardware.compile": "on"}]),
        ({}, 0.02, {}, [{"hardware.workers": 1}, {"hardware.workers": 2}]),
        ({"workers": 2}, 0.0, {"workers": 2}, [{"hardware.workers": 0}, {"hardware.workers": 1}]),
    ],
)
def test_only_settings_that_compute_it_in_another_way_are_tried(
    facts: dict[str, Any], waiting: float, hardware: dict[str, Any], expected: list[dict[str, Any]]
) -> None:
    assert choices(recipe(hardware=hardware), replace(FACTS, **facts), waiting) == expected


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.04, 1.05, 1.30], "faster"),
        ([0.99, 1.20, 1.30], "no difference"),  # once it was slower
        ([1.01, 1.02, 1.02], "no difference"),  # always, but by less than noise
        ([0.70, 0.80, 0.99], "slower"),
        ([0.98, 0.98, 0.99], "no difference"),
    ],
)
def test_a_setting_within_noise_makes_no_difference(ratios: list[float], expected: str) -> None:
    assert verdict(ratios) == expected


def rows(*entries: tuple[dict[str, Any], float, str]) -> list[TriedSetting]:
    return [
        TriedSetting(setting, verdict, Speed(1000.0, ratio, ratio, ratio, 0.0, 2**30))
        for setting, ratio, verdict in entries
    ]


def test_what_is_faster_is_tried_together_with_the_best_value_of_each_key() -> None:
    found = rows(
        ({"hardware.workers": 1}, 1.2, "faster"),
        ({"hardware.workers": 2}, 1.1, "faster"),
        ({"hardware.packing": "off"}, 1.3, "faster"),
        ({"hardware.precision": "bf16"}, 1.5, "no difference"),
    )
    assert combined(found) == {"hardware.workers": 1, "hardware.packing": "off"}


def test_the_line_to_copy_is_the_fastest_that_was_measured() -> None:
    together = {"hardware.workers": 1, "hardware.packing": "off"}
    found = rows(
        ({"hardware.workers": 1}, 1.2, "faster"),
        ({"hardware.packing": "off"}, 1.3, "faster"),
        (together, 1.25, "faster"),
    )
    assert fastest(found) == {"hardware.packing": "off"}
    assert fastest(rows((together, 2.0, "no difference"))) == {}


def test_a_step_too_long_for_a_turn_is_made_shorter_but_not_below_two_micro_batches() -> None:
    long = recipe(train={"batch_size": 100})

    def fitting(seconds: float) -> int | None:
        first = Turn(
            seconds=seconds,
            steps=1,
            examples=100,
            tokens=800,
            slots=800,
            waited_seconds=0.0,
            micro_batch_tokens=128,
            peak_memory_bytes=2**30,
        )
        return bench._fitting(long, FACTS, first, turn=2.0)

    assert [fitting(seconds) for seconds in (1.0, 2.0, 4.0, 1000.0)] == [None, None, 50, 8]


def test_only_keys_that_leave_what_is_learned_alone_are_tried() -> None:
    assert bench._hardware_keys(recipe(), "hardware.workers=2") == {"hardware.workers": 2}
    with pytest.raises(RecipeError, match=r"--try train\.batch_size: changes what is learned"):
        bench._hardware_keys(recipe(), "train.batch_size=2")
    with pytest.raises(
        RecipeError, match=r"--try hardware\.processes: is no part of what is measured"
    ):
        bench._hardware_keys(recipe(), "hardware.processes=2")
    with pytest.raises(RecipeError, match="micro_batch_tokens"):
        bench._hardware_keys(recipe(), "hardware.micro_batch_token=2")


def test_the_tables_end_with_the_keys_to_copy() -> None:
    packing = TriedSetting(
        {"hardware.packing": "off"}, "slower", Speed(999.0, 0.8, 0.7, 0.9, 0.125, 2**29)
    )
    compiled = TriedSetting({"hardware.compile": "on"}, "failed", note="why")
    report = BenchReport(
        recipe="mine",
        task="mlm",
        device="cpu",
        threads=2,
        parameters={"trained": 10, "total": 2000},
        precision="fp32",
        packing=True,
        workers=0,
        micro_batch_tokens=4096,
        tokens_per_second=1234.5,
        low=1200.0,
        high=1300.0,
        padding=0.125,
        peak_memory_bytes=2**30,
        matmul_flops_per_second=300_000_000_000,
        flops_per_token=None,
        share_of_peak=None,
        data_wait=0.01,
        seconds_per_epoch=90.0,
        seconds_in_all=600.0,
        settings=(packing, compiled),
        faster=("hardware.workers=1", "hardware.packing=off"),
    )
    shown = report.to_text()
    assert shown.splitlines()[-1] == "hardware.workers=1 hardware.packing=off"
    assert "1,234 (1,200 ... 1,300)" in shown
    assert "0.80 (0.70 ... 0.90)" in shown
    assert (
        replace(report, faster=()).to_text().splitlines()[-1]
        == "nothing that was tried is clearly faster"
    )
