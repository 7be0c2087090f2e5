"""What the quality benchmark keeps, and its tables."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import page
import pytest
import quality


def entry(variant: str, seed: int, f1: float, **more: Any) -> dict[str, Any]:
    recipe = quality.key_of(quality.LINES["wikigold"], variant)
    ran = {"date": "2026-11-25", "machine": "a chip", "threads": 2, "precision": "bf16"}
    return (
        {"data": "wikigold", "variant": variant, "seed": seed, "recipe": recipe, "f1": f1}
        | ran
        | more
    )


def test_mean_and_sample_standard_deviation_stand_in_the_table() -> None:
    row = quality.table([entry("full", 13, 0.66), entry("full", 14, 0.68)]).splitlines()[-1]

    assert "| wikigold | ner | all weights | f1 | 67.00 ± 1.41 | 2 |" in row


def test_a_decoder_is_compared_with_argmax_of_the_same_seeds() -> None:
    against = {
        "difference": 0.02,
        "low": 0.01,
        "high": 0.03,
        "p_value": 0.0002,
        "verdict": "b is better",
    }

    rows = quality.decoding_table(
        [
            entry("full", 13, 0.66),
            entry("full", 14, 0.7),
            entry("viterbi", 13, 0.68, against_full=against),
        ]
    )

    assert rows.splitlines()[-1] == (
        "| wikigold | Viterbi | 68.00 | 66.00 | 1 | +2.00 (+1.00 ... +3.00, p = 0.0002): Viterbi is better |"
    )


def test_what_another_recipe_gave_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = tmp_path / "quality.json"
    noted.write_text(
        json.dumps([entry("full", 13, 0.66), entry("full", 14, 0.1) | {"recipe": "of old"}])
    )
    monkeypatch.setattr(quality, "RESULTS", noted)

    assert [one["seed"] for one in quality.measured()] == [13]


def test_a_run_has_a_directory_of_its_own_by_recipe_and_model(tmp_path: Path) -> None:
    """Else --resume would go on from what another gave."""

    def directory(line: quality.Line, variant: str = "full", seed: int = 13) -> str:
        given = argparse.Namespace(out=tmp_path / "out", model=tmp_path)
        return str(quality.directory_of(line, variant, seed, given).name)

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("1")
    line, other = quality.LINES["wnut17"], quality.LINES["wikigold"]
    longer = quality.Line(
        line.data,
        line.task,
        line.metrics,
        quality.merged(line.recipe, {"train": {"epochs": 7}}),
        line.floor,
    )
    before = directory(line)
    assert before.startswith("wnut17-full-13-")
    assert before == directory(line)
    names = {
        before,
        directory(line, "lora"),
        directory(line, "viterbi"),
        directory(line, seed=14),
        directory(other),
    }
    assert len(names | {directory(longer)}) == 6
    (tmp_path / "model.safetensors").write_text("12")
    assert directory(line) != before
    (tmp_path / "model.safetensors").write_text("1")
    (tmp_path / "config.json").write_text("{ }")
    assert directory(line) != before


def test_random_weights_are_no_model(tmp_path: Path) -> None:
    assert quality.model_of(quality.LINES["tatoeba_en_zh"], tmp_path) == {}


def test_recipes_have_the_hashes_that_measurements_are_noted_with() -> None:
    assert quality.key_of(quality.LINES["wnut17"], "full") == "4f46589f6aa6"
    assert quality.key_of(quality.LINES["banking77"], "lora") == "afaaeac8ab1d"


def test_where_nothing_is_measured_the_section_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quality, "RESULTS", tmp_path / "quality.json")
    assert quality.section().endswith("Both tables: nothing is measured yet.")


def test_a_page_keeps_what_stands_around_a_section() -> None:
    whole = page.between("# Page\n\nbefore\n", "speed", "slow") + "\nafter\n"
    found = page.between(page.between(whole, "gpu", "one"), "speed", "\nfast\n")
    assert found.splitlines() == [
        *[
            "# Page",
            "",
            "before",
            "",
            "<!-- speed: begin -->",
            "fast",
            "<!-- speed: end -->",
            "",
            "after",
            "",
        ],
        *["<!-- gpu: begin -->", "one", "<!-- gpu: end -->"],
    ]
    assert page.between(found, "speed", "fast") == found
