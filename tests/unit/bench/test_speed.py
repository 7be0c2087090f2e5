"""The arithmetic of the speed benchmark, and its page."""

from __future__ import annotations

from pathlib import Path

import pytest
import speed

SIZE = {"encoder": 100, "decoder": 0, "layers": 2, "width": 4, "vocabulary": 10}


@pytest.mark.parametrize(
    ("task", "flops"),
    [
        ("classification", 6 * 100 * 10 + 12 * 2 * 4 * 5 * 10),
        ("mlm", 6 * 100 * 10 + 12 * 2 * 4 * 5 * 10 + 6 * 4 * 10 * 1.5),
        ("clm", 6 * 100 * 10 + 12 * 2 * 4 * 5 * 10 / 2 + 6 * 4 * 10 * 10),
    ],
)
def test_useful_flops_of_training_ten_tokens(task: str, flops: float) -> None:
    assert speed.useful_flops(SIZE, task, tokens=10, length=5, training=True) == pytest.approx(
        flops
    )


def test_evaluation_is_a_third_of_training() -> None:
    training, evaluation = (
        speed.useful_flops(SIZE, "ner", tokens=7, length=3, training=is_training)
        for is_training in (True, False)
    )
    assert training == pytest.approx(3 * evaluation)


def test_each_side_of_a_translator_reads_half_of_the_tokens() -> None:
    both = SIZE | {"encoder": 30, "decoder": 70}
    assert (
        speed.useful_flops(both | {"width": 0}, "translation", tokens=10, length=5, training=True)
        == 6 * (30 + 70) * 5
    )


def test_what_is_measured_anew_takes_the_place_of_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "RESULTS", tmp_path / "speed.json")
    assert speed.remembered([]) == []
    assert not speed.RESULTS.exists()
    speed.remembered([{"name": "ner", "steps": 1}, {"name": "eval", "steps": 2}])
    kept = [{"name": "mlm", "steps": 4}, {"name": "ner", "steps": 3}, {"name": "eval", "steps": 2}]
    assert speed.remembered([{"name": "ner", "steps": 3}, {"name": "mlm", "steps": 4}]) == kept
    assert speed.remembered([]) == kept


def test_ratios_are_taken_pair_by_pair() -> None:
    rounds = [
        {"lmkit": {"rate": a}, "best": {"rate": b}}
        for a, b in ((20.0, 2.0), (6.0, 3.0), (9.0, 3.0))
    ]
    assert speed.ratios(rounds, "best") == (3.0, 2.0, 10.0)


def test_the_table_shows_ratio_target_and_what_was_not_measured() -> None:
    side = {"ratio": [2.0, 1.9, 2.1], "rate": 1000.0, "seconds": 3.0}
    found = {
        "what": "NER",
        "unit": "rows",
        "targets": {"script": 4.0, "best": 1.6},
        "lmkit": {"rate": 2000.0, "padding": 0.05},
    }
    line = speed.table([found | {"script": side, "best": side}]).splitlines()[-1]
    assert line.startswith(
        "| NER | 2.00x (1.90 ... 2.10) | 4.00x | 2.00x (1.90 ... 2.10) | 1.60x | 2,000 rows/s |"
    )
    assert "| 5% / - / - |" in line


def test_every_bench_has_a_recipe_that_names_its_inputs(tmp_path: Path) -> None:
    place = speed.Place(tmp_path, steps=8)
    recipes = {name: speed.recipe_of(name, place) for name in speed.BENCHES}
    assert recipes["mlm"]["train"]["max_steps"] == 8
    assert "train" not in recipes["eval"]
    assert recipes["startup"]["data"]["train"].endswith("inputs/classification.jsonl")


def test_a_token_sees_the_text_or_part_of_a_text_that_it_stands_in() -> None:
    lengths, most = [3, 8, 5, 1], 4
    parts = [3, 4, 4, 4, 1, 1]
    tokens = [part for part in parts for _ in range(part)]
    assert speed.seen(lengths, most) == pytest.approx(sum(tokens) / len(tokens))


def test_the_page_says_what_was_measured_where() -> None:
    machine = {
        "cores": 2,
        "cpu": "a chip",
        "has": ["avx2"],
        "date": "2026-11-25",
        "versions": {"torch": "2"},
    }
    machine["peak"] = {"fp32": 1e9, "bf16": 2e9}
    side = {"ratio": [2.0, 1.9, 2.1], "rate": 1000.0, "seconds": 3.0}
    bench = {
        "name": "ner",
        "what": "NER",
        "unit": "rows",
        "targets": {},
        "lmkit": {"rate": 2.0},
        "script": side,
        "best": side,
    }
    bench["machine"] = machine
    place = "2 cores (a chip; avx2), 2026-11-25, torch 2, matrix products 1 GFLOP/s in fp32, 2 GFLOP/s in bf16"
    assert f"`make bench` on {place}.\n" in speed.section([bench, bench | {"name": "clm"}])
    both = speed.section([bench, bench | {"name": "clm", "machine": machine | {"cores": 8}}])
    assert f"`make bench` on {place} (ner) and {place.replace('2 cores', '8 cores')} (clm)." in both
