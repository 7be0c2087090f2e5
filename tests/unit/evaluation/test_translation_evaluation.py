"""A translator that has learned a few shipped sentences: what it writes, and what that is worth."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sacrebleu

from lmkit.data.plan import micro_batches
from lmkit.evaluation.evaluate import evaluate_split
from lmkit.evaluation.forward import Forward
from lmkit.records import Metrics

ROWS = 16


@dataclass(frozen=True)
class Learned:
    model: Any
    task: Any
    encoded: Any
    records: list[dict[str, Any]]
    metrics: Metrics
    folder: Path


@pytest.fixture(scope="module")
def learned(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    from lmkit.models.load import load_trained
    from lmkit.models.source import find_model

    recipe = tiny.recipe(
        "translation",
        data={"validation": "sample:tatoeba_en_es/train.tsv.gz", "max_rows": ROWS},
        train={
            "max_steps": 60,
            "batch_size": 16,
            "learning_rate": 1e-2,
            "select_best": "last",
            "eval_every": 60,
        },
        generation={"num_beams": 3, "max_new_tokens": 20},
    )
    run = tiny.fit(recipe)
    task = tiny.prepared(recipe).task
    encoded = tiny.prepared(recipe).encoded["validation"]
    model = load_trained(find_model(str(run.model)), task)
    folder = tmp_path_factory.mktemp("eval") / "validation"
    options = recipe.eval
    forward = Forward(task, model, tiny.processes, 999)
    metrics = evaluate_split(forward, encoded, split="validation", options=options, folder=folder)
    assert metrics is not None
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return Learned(model, task, encoded, [json.loads(line) for line in lines], metrics, folder)


def test_scores_are_those_of_the_sacrebleu_command_on_what_was_written(
    learned: Learned, tmp_path: Path
) -> None:
    for name, key in (("hypotheses", "prediction"), ("references", "gold")):
        (tmp_path / name).write_text(
            "".join(record[key] + "\n" for record in learned.records), encoding="utf-8"
        )
    command = [
        sys.executable,
        "-m",
        "sacrebleu",
        "references",
        "-i",
        "hypotheses",
        "-m",
        "bleu",
        "chrf",
        "ter",
        "-w",
        "6",
    ]
    printed = json.loads(
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, text=True).stdout
    )
    assert (
        learned.metrics.metrics["bleu"].value > 5
    )  # the model writes what it learned, and scores are not all zero
    for score in printed:
        name = {"BLEU": "bleu", "chrF2": "chrf", "TER": "ter"}[score["name"]]
        assert learned.metrics.metrics[name].value == pytest.approx(score["score"], abs=1e-6)
        assert f"{score['name']}|{score['signature']}" in learned.metrics.signature
    assert len(printed) == 3


def test_length_ratio_and_shares_are_counted_from_what_was_written(learned: Learned) -> None:
    values = {name: interval.value for name, interval in learned.metrics.metrics.items()}
    hypotheses, references = (
        [record[key] for record in learned.records] for key in ("prediction", "gold")
    )
    bleu = sacrebleu.corpus_bleu(hypotheses, [references])
    assert values["length_ratio"] == pytest.approx(bleu.sys_len / bleu.ref_len)
    assert values["empty"] == hypotheses.count("") / ROWS
    shares = Counter(record["truncated"] for record in learned.records)
    assert values["truncated"] == shares[True] / ROWS
    assert set(shares) == {
        True,
        False,
    }  # some sentences are longer than twenty tokens, others are not
    tokens = [
        len(learned.task.tokenizer(record["prediction"])["input_ids"]) for record in learned.records
    ]
    assert all(
        length <= 20
        for length, record in zip(tokens, learned.records, strict=True)
        if not record["truncated"]
    )


def test_a_translation_is_the_same_in_any_batch(tiny: Any, learned: Learned) -> None:
    for budget in (1, 60, 400, 10**6):
        forward = Forward(learned.task, learned.model, tiny.processes, budget)
        records = list(forward.predictions(learned.encoded))
        assert [record["prediction"] for record in records] == [
            record["prediction"] for record in learned.records
        ]
        assert [record["truncated"] for record in records] == [
            record["truncated"] for record in learned.records
        ]
        assert [record["score"] for record in records] == pytest.approx(
            [r["score"] for r in learned.records], abs=1e-5
        )


def test_batches_leave_room_for_the_beams(tiny: Any, learned: Learned) -> None:
    import numpy as np

    pieces = learned.encoded.pieces[:]
    costs = np.array([learned.task.cost(piece) for piece in pieces])
    for batch in micro_batches(np.arange(len(pieces)), costs, 400):
        longest = max(len(pieces[i]["input_ids"]) for i in batch)
        assert len(batch) == 1 or len(batch) * (longest + 3 * 20) <= 400
    recipe = learned.task.recipe
    more = recipe.model_copy(
        update={"generation": recipe.generation.model_copy(update={"num_beams": 6})}
    )
    assert (
        learned.task.problem.task(more, {}, learned.task.tokenizer).cost(pieces[0])
        == costs[0] + 3 * 20
    )


def test_a_penalty_without_beams_has_no_effect(tiny: Any) -> None:
    from lmkit.errors import RecipeError

    with pytest.raises(
        RecipeError, match=r"generation\.length_penalty: has no effect with one beam"
    ):
        tiny.prepared(
            tiny.recipe("translation", generation={"num_beams": 1, "length_penalty": 2.0})
        )
