"""What is kept, as JSON and back: nothing is lost, and nothing that JSON cannot say is written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lmkit.records import Interval, Manifest, Metrics, Record, Verdict, jsonable

RUNS = sorted((Path(__file__).parents[1] / "fixtures" / "run-0.1").glob("*/manifest.json"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.parent.name)
def test_the_manifest_of_an_earlier_version_is_read(path: Path) -> None:
    stored = json.loads(path.read_text())
    manifest = Manifest.from_json(stored)
    assert manifest.ending is not None
    assert manifest.ending.steps == stored["steps"]
    again = manifest.to_json()
    assert {name: again[name] for name in stored if name in again} == {
        name: value for name, value in stored.items() if name in again
    }
    assert [name for name in again if name in stored] == [name for name in stored if name in again]
    assert stored.keys() - again.keys() <= {"decisions"}


def test_a_run_that_has_not_ended_says_so() -> None:
    stored = json.loads(RUNS[0].read_text())
    del stored["finished"]
    manifest = Manifest.from_json(stored)
    assert manifest.ending is None
    assert "steps" not in manifest.to_json()


@pytest.mark.parametrize(
    "path", [path for run in RUNS for path in run.parent.glob("eval/*/metrics.json")], ids=str
)
def test_the_metrics_of_an_earlier_version_are_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    stored = json.loads(text)
    assert json.dumps(Metrics.from_json(stored).to_json()) == json.dumps(stored)
    later = stored | {"of_a_later_version": 1}
    assert Metrics.from_json(later) == Metrics.from_json(stored)


def test_json_has_no_infinities_at_any_depth() -> None:
    value = {"a": [1.0, math.nan, (math.inf,)], "b": Interval(math.nan, None, 2.0)}
    assert jsonable(value) == {
        "a": [1.0, None, [None]],
        "b": {"value": None, "low": None, "high": 2.0},
    }


def test_a_verdict_leaves_out_tests_that_were_not_made() -> None:
    verdict = Verdict("f1", 0.4, 0.5, 0.1, None, None, 1.0, "not distinguishable")
    stored = verdict.to_json()
    assert list(stored) == ["metric", "a", "b", "difference", "low", "high", "p_value", "verdict"]
    assert stored["low"] is None
    assert Verdict.from_json(stored) == verdict


def test_a_record_keeps_what_its_task_alone_knows() -> None:
    line = {"id": 3, "text": "a", "nll": 3.0, "items": 2, "of_a_foreign_task": [1]}
    record = Record.from_json(line)
    assert record["of_a_foreign_task"] == [1]
    assert record.loss == 1.5
    assert list(record.to_json()) == list(line)
    assert math.isnan(Record({"nll": 0.0, "items": 0}).loss)
    assert record.with_answer("b").to_json() == line | {"prediction": "b"}
