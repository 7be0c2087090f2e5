"""Evaluation memory is flat in the size of the data [transformers#8476]."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

WORDS = [
    "good",
    "bad",
    "fine",
    "poor",
    "great",
    "awful",
    "nice",
    "sad",
    "happy",
    "dull",
    "day",
    "film",
    "food",
    "place",
    "talk",
    "ride",
    "game",
    "song",
    "book",
    "show",
]
# what the test's own process held before it became lmkit's is not counted: it starts small, and says what it held at most
PEAK = "import resource, sys; from lmkit.cli import _status; sys.exit(_status() or print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))"


@pytest.mark.slow
def test_two_hundred_thousand_rows_take_hardly_more_memory_than_two_thousand(
    tmp_path: Path,
) -> None:
    draw = random.Random(1)
    for rows in (2_000, 200_000):
        with (tmp_path / f"{rows}.jsonl").open("w", encoding="utf-8") as out:
            for number in range(rows):
                text = " ".join(draw.choice(WORDS) for _ in range(5))
                out.write(
                    json.dumps({"text": f"{text} {number}", "label": draw.choice(["good", "bad"])})
                    + "\n"
                )
    recipe = {
        "task": "classification",
        "model": {"preset": "bert-nano"},
        "tokenizer": {"train": {"vocab_size": 300}},
        "data": {"train": str(tmp_path / "2000.jsonl"), "max_length": 16},
        "train": {"max_steps": 2},
        "eval": {"resamples": 100},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")

    def run(*arguments: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *arguments, "-q"],
            capture_output=True,
            text=True,
            env=os.environ,
            check=True,
        )
        return int(done.stdout.split()[-1])

    run("finetune", str(tmp_path / "recipe.yaml"))
    few, many = (
        run(
            "eval",
            str(tmp_path / "run"),
            f"data.test={tmp_path / f'{rows}.jsonl'}",
            "-o",
            str(tmp_path / f"eval-{rows}"),
        )
        for rows in (2_000, 200_000)
    )
    assert many <= 1.3 * few
