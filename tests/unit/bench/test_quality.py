"""What the quality benchmark keeps, and its tables."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "bench" / "quality.py"
spec = importlib.util.spec_from_file_location("quality_bench", SOURCE)
assert spec is not None
assert spec.loader is not None
quality = importlib.util.module_from_spec(spec)
sys.modules["quality_bench"] = quality  # dataclasses look their module up
spec.loader.exec_module(quality)


def entry(variant: str, seed: int, f1: float, **more: Any) -> dict[str, Any]:
    recipe = quality.key_of(quality.LINES["wikigold"], variant)
    ran = {"date": "2026-11-25", "machine": "a chip", "threads": 2, "precision": "bf16"}
    return {"data": "wikigold", "variant": variant, "seed": seed, "recipe": recipe, "f1": f1} | ran | more


def test_mean_and_sample_standard_deviation_stand_in_the_table() -> None:
    row = quality.table([entry("full", 13, 0.66), entry("full", 14, 0.68)]).splitlines()[-1]

    assert "| wikigold | ner | all weights | f1 | 67.00 ± 1.41 | 2 |" in row


def test_a_decoder_is_compared_with_argmax_of_the_same_seeds() -> None:
    against = {"difference": 0.02, "low": 0.01, "high": 0.03, "p_value": 0.0002, "verdict": "b is better"}

    rows = quality.decoding_table(
        [entry("full", 13, 0.66), entry("full", 14, 0.7), entry("viterbi", 13, 0.68, against_full=against)]
    )

    assert rows.splitlines()[-1] == (
        "| wikigold | Viterbi | 68.00 | 66.00 | 1 | +2.00 (+1.00 ... +3.00, p = 0.0002): Viterbi is better |"
    )


def test_what_another_recipe_gave_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = tmp_path / "quality.json"
    noted.write_text(json.dumps([entry("full", 13, 0.66), entry("full", 14, 0.1) | {"recipe": "of old"}]))
    monkeypatch.setattr(quality, "RESULTS", noted)

    assert [one["seed"] for one in quality.measured()] == [13]
