"""Time to a validation loss: what both sides are given, and what is read from lmkit's log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import speed
import time_to_loss as bench

MACHINE = {"cores": 2, "cpu": "a chip", "date": "2026-11-25"}


def entry(**more: Any) -> dict[str, Any]:
    tried = [
        {
            "share": 0.5,
            "steps": 90,
            "seconds": 240.0,
            "curve": [[120.0, 7.0], [240.0, 6.4], [300.0, 6.3]],
        }
    ]
    peer = {"seconds": 600.0, "steps": 50, "loss": 6.5}
    return {
        "name": "time-mlm",
        "what": "MLM",
        "machine": MACHINE,
        "peer": peer,
        "tried": tried,
        "ratio": 0.4,
    } | more


def test_a_text_has_exactly_so_many_pieces_and_loses_words_only_at_its_end() -> None:
    words = [(f"w{i}", 1 + i % 3) for i in range(100)]
    found = list(bench.texts(words, 7))
    sizes = dict(words)
    assert [sum(sizes[word] for word in text.split()) for text in found] == [7] * len(found)
    kept = " ".join(found).split()
    assert kept == [word for word in sizes if word in set(kept)]


def test_evaluations_are_not_on_the_clock() -> None:
    step = {"tokens": 100, "tokens_per_second": 50.0}
    log = [
        step | {"seconds": 2.0},
        {"validation_loss": 8.0},
        step | {"seconds": 60.0},
        {"validation_loss": 7.0},
    ]
    assert bench.curve(log) == [(2.0, 8.0), (4.0, 7.0)]


def test_the_page_says_when_the_loss_was_not_reached() -> None:
    assert "| 240 s | 0.40x | 0.50x |" in bench.section([entry()])
    assert "| not reached | - | 0.50x |" in bench.section([entry(ratio=None)])


@pytest.mark.parametrize("task", ["mlm", "clm"])
def test_a_text_is_one_block_of_the_peer_and_one_example_of_lmkit(
    task: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    bench.make(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / f"time-{task}")
    length = speed.BENCHES[task].length
    rows = (tmp_path / f"time-{task}-validation.jsonl").read_text().splitlines()
    assert {
        len(ids) for ids in tokenizer([json.loads(row)["text"] for row in rows])["input_ids"]
    } == {length}
    assert tokenizer.eos_token is None or task == "mlm"  # run_clm would not learn to write it
    recipe = bench.recipe_of(task, speed.Place(tmp_path, steps=100), evaluations=25)
    assert recipe["train"]["eval_every"] == 4
    assert recipe["data"]["max_length"] == length
