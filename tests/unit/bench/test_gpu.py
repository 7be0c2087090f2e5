"""The GPU bench: its inputs in small, what both sides are told, and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import gpu
import pytest
import speed

from lmkit.recipe import load_recipe


def test_both_sides_get_the_same_rows_weights_batch_and_steps(tmp_path: Path) -> None:
    place = speed.Place(tmp_path, steps=60)
    for name, bench in gpu.BENCHES.items():
        recipe, spec = gpu.recipe_of(name, place.inputs, 60), gpu.spec_of(name, place, 4)
        load_recipe(recipe)
        assert recipe["model"]["base"] == spec["model"]
        assert recipe["data"] == {"train": spec["data"], "max_length": spec["length"]}
        assert recipe["train"]["batch_size"] == spec["batch"] * spec["accumulation"] == bench.batch
        assert recipe["train"]["max_steps"] == spec["steps"]
        assert bench.batch * bench.length == 65_536


def test_inputs_are_made_in_small(tmp_path: Path) -> None:
    gpu.make(tmp_path, rows=3, small=True)
    for name in gpu.BENCHES:
        size = json.loads((tmp_path / name / "sizes.json").read_text())
        per_layer = 12 * 32 * 32 if name == "gpu-clm" else 4 * 32 * 32 + 2 * 32 * 64
        heads = 0 if name == "gpu-clm" else 32 * 32  # the transform before the output
        assert size["encoder"] == 2 * per_layer + heads
        told = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert told["model_max_length"] == gpu.BENCHES[name].length
        assert len((tmp_path / f"{name}.jsonl").read_text().splitlines()) == 3


def test_the_clock_starts_when_step_20_is_done() -> None:
    log = [{"step": step, "seconds": step / 10, "tokens": 100} for step in range(10, 61, 10)]
    assert gpu.of_log(log) == {"seconds": pytest.approx(4.0), "tokens": 400}
    found = {"times": [float(step) for step in range(60)], "counts": [[50, 50]] * 125}
    assert gpu.of_peer(found, 2) == {"seconds": 40.0, "tokens": 2 * 40 * 50}


def test_summary_takes_ratios_pair_by_pair_and_shares_of_the_peak() -> None:
    size = {"encoder": 100, "decoder": 0, "layers": 2, "width": 4, "vocabulary": 10}
    pairs = [(2.0, 1.0), (3.0, 2.0), (4.0, 1.0)]
    rounds = [
        {
            side: {"tokens": 10.0 * rate, "seconds": 10.0, "memory": 1e9}
            for side, rate in zip(gpu.SIDES, pair, strict=True)
        }
        for pair in pairs
    ]
    found = gpu.summary("gpu-clm", rounds, size, length=300, peak=1e6)
    assert found["ratio"] == (2.0, 1.5, 4.0)
    flops = speed.useful_flops(size, "clm", tokens=3.0, length=300, training=True)
    assert found["lmkit"]["share_of_peak"] == pytest.approx(flops / 1e6)
    machine = {"gpu": "a GPU", "date": "2026-11-25", "torch": "2", "peak": 1e12}
    assert "| 2.00x (1.50 ... 4.00) | 1.3x | 3 tokens/s | 1 tokens/s |" in gpu.section(
        [found | {"machine": machine}]
    )
