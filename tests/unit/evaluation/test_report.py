"""The page: what stands in it, and that nothing of the data can become markup or script."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from lmkit.console import readable
from lmkit.evaluation.analysis import Analysis, Background
from lmkit.evaluation.calibration import calibration
from lmkit.evaluation.mistakes import confusion
from lmkit.evaluation.report.page import report
from lmkit.evaluation.report.plots import curves, thin, ticks
from lmkit.evaluation.report.render import svg
from lmkit.evaluation.report.rows import MOST
from lmkit.evaluation.slices import Slice
from lmkit.evaluation.suspicions import DoubtfulGold, Overlap, Suspicions
from lmkit.recipe import load_recipe
from lmkit.records import BaselineScore, Interval, Metrics, Record
from lmkit.tasks.base import Scored
from lmkit.tasks.registry import problem

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"
CLEAN = Overlap(
    checked=True, train_rows=5, searched_for_near=5, exact=0, near=0, ids=[], near_examples=[]
)


def page(
    records: list[dict[str, Any]],
    *,
    task: str = "classification",
    labels: tuple[str, ...] = ("a", "b"),
    always: str | None = None,
    **more: Any,
) -> str:
    """A report of records as evaluation writes them, its metrics made up."""
    if task == "ner":
        tags = {tag for record in records for tag in (*record["gold"], *record["prediction"])}
        labels = tuple(sorted(tags))
    facts = {"labels": list(labels), **problem(task).recover(records)}
    made = Scored(problem(task), load_recipe({"task": task, "name": "x"}), facts)
    answer = made.answer
    lines = [Record(record) for record in records]
    metric = {"classification": "accuracy", "ner": "f1", "translation": "bleu"}.get(task, "loss")
    metrics = Metrics(
        task=task,
        split="test",
        examples=len(records),
        loss=0.5,
        confidence=0.95,
        metrics={metric: Interval(0.8125, 0.75, 0.875)},
        signature="",
        seconds=1.0,
        **more,
    )
    analysis = Analysis(
        kind=answer.kind,
        slices={
            "length": [Slice(f"{i} – {i + 1}", 2, metrics.metrics) for i in (1, 3)],
        },
        confusion=confusion(lines, answer, labels),
        entity_errors=answer.errors(lines),
        calibration=calibration(lines, answer),
        worst=[],
        suspicions=Suspicions(CLEAN, always, [], DoubtfulGold(0, [])),
    )
    return report(metrics, analysis, lines, made, Background())


def labelled(number: int, text: str, gold: str, prediction: str) -> dict[str, Any]:
    probabilities = {
        name: 0.9 if name == prediction else 0.1 for name in sorted({gold, prediction, "a"})
    }
    return {
        "id": number,
        "text": text,
        "gold": gold,
        "prediction": prediction,
        "score": 0.9,
        "probabilities": probabilities,
        "nll": 2.0,
        "items": 1,
    }


class Tags(HTMLParser):
    """Which elements a page has, and where they point."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self.names and self.names[-1] == "script":
            self.script += data


def parsed(html: str) -> Tags:
    found = Tags()
    found.feed(html)
    return found


@pytest.mark.parametrize(
    ("task", "record"),
    [
        ("classification", labelled(0, EVIL, EVIL, "a")),
        (
            "ner",
            {
                "id": 0,
                "tokens": [EVIL],
                "gold": [f"B-{EVIL}"],
                "prediction": ["O"],
                "score": [0.5],
                "nll": 1.0,
                "items": 1,
            },
        ),
        (
            "ner",
            {
                "id": 0,
                "tokens": [EVIL],
                "gold": [EVIL],
                "prediction": ["X"],
                "score": [0.5],
                "nll": 1.0,
                "items": 1,
            },
        ),
        (
            "translation",
            {
                "id": 0,
                "source": EVIL,
                "gold": EVIL,
                "prediction": f"a {EVIL}",
                "score": 0.5,
                "nll": 1.0,
                "items": 1,
            },
        ),
        (
            "clm",
            {"id": 0, "text": EVIL, "score": 1.0, "bytes": 9, "nll": 1.0, "items": 1, "correct": 0},
        ),
    ],
)
def test_nothing_of_the_data_becomes_markup(task: str, record: dict[str, Any]) -> None:
    html = page(
        [record] * 2,
        task=task,
        labels=(EVIL, "a"),
        by_label={EVIL: {"precision": 0, "recall": 0, "f1": 0, "support": 1}},
    )
    found = parsed(html)
    assert found.names.count("script") == 2
    assert "img" not in found.names
    assert "onerror" not in [name for name, _ in found.attributes]
    assert "alert" in html


def test_json_cannot_end_its_script() -> None:
    by_label = {EVIL: {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}}
    html = page([labelled(0, "t", "a", "b")], by_label=by_label | {"<!--": by_label[EVIL]})
    text = html.partition('<script type="application/json" id="metrics">')[2]
    text = text.partition("</script>")[0]
    assert "<" not in text
    assert json.loads(text)["by_label"].keys() == {EVIL, "<!--"}


def test_the_page_asks_nothing_of_the_network() -> None:
    html = page([labelled(0, "see https://example.org/x", "a", "b")])
    found = parsed(html)
    links = [
        value or ""
        for name, value in found.attributes
        if name in ("src", "href", "action", "srcset", "xlink:href")
    ]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\(", html)
    policy = next(
        value or ""
        for name, value in found.attributes
        if name == "content" and "default-src" in (value or "")
    )
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_the_result_comes_first_with_its_interval_and_the_floor_beside_it() -> None:
    floor = BaselineScore(
        {"accuracy": Interval(0.5, 0.4, 0.6)}, metric="accuracy", verdict="the model is better"
    )
    html = page([labelled(0, "t", "a", "b")], baselines={"majority class": floor})
    assert (
        html.index("0.812")
        < html.index("0.750 … 0.875")
        < html.index("majority class")
        < html.index("Where it fails")
    )
    assert "the model is better" in html


def test_one_prediction_for_all_rows_is_said_and_cannot_become_markup() -> None:
    found = [labelled(i, "t", "b", "a") for i in range(2)]
    html = page(found, always=json.dumps(EVIL))
    assert "Always predicted:" in html
    assert "&lt;img src=x" in html
    assert "img" not in parsed(html).names
    assert "Always predicted:" not in page(found)


def test_long_lists_are_cut_and_it_is_said() -> None:
    html = page([labelled(i, f"text {i}", "a", "b") for i in range(MOST + 7)])
    assert html.count("data-pairs=") == MOST
    assert "7 more are in predictions.jsonl" in html


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (
            [
                {"id": i, "text": "t", "gold": i / 2, "prediction": 1.0, "nll": 1.0, "items": 1}
                for i in range(4)
            ],
            "Predicted over gold",
        ),
        (
            [
                {
                    "id": 0,
                    "text": "t",
                    "gold": ["a"],
                    "prediction": ["b"],
                    "probabilities": {"a": 0.4, "b": 0.7},
                    "nll": 1.0,
                    "items": 1,
                }
            ],
            "+ b",
        ),
    ],
)
def test_numbers_and_sets_of_labels_have_their_page(
    records: list[dict[str, Any]], said: str
) -> None:
    assert said in page(records)


def test_words_that_differ_are_marked_in_scripts_without_spaces_too() -> None:
    record = {"id": 0, "source": "I am fine", "gold": "我很好", "prediction": "我不好", "items": 0}
    html = page([record], task="translation")
    assert "我<ins>很</ins>好" in html
    assert "我<del>不</del>好" in html


def test_figures_survive_one_point_and_many() -> None:
    drawing = curves([[(1, 2.0), (1, 2.0)]], x_label="step", y_label="loss", title="t")
    assert "nan" not in svg(drawing)
    assert svg(drawing).startswith("<svg ")
    assert len(thin([(i, i) for i in range(5000)])) == 600
    assert thin([(i, i) for i in range(5000)])[-1] == (4999, 4999)
    assert ticks(0.31, 0.58) == [0.4, 0.5]
    assert readable(float("nan")) == "–"
