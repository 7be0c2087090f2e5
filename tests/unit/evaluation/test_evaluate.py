"""Records, and the numbers that follow from them."""

from __future__ import annotations

import json
import math
import operator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmkit.evaluation.evaluate import evaluate_split, measure, metrics_of, metrics_table, validate
from lmkit.evaluation.forward import Forward
from lmkit.recipe.schema import Eval
from lmkit.records import Interval, Metrics, finite
from lmkit.tasks.direction import is_better
from lmkit.train.parallelism.replicated import Replicated


def lm_record(nll: float, items: int, *, correct: int = 0, num_bytes: int = 10) -> dict[str, Any]:
    return {"nll": nll, "items": items, "correct": correct, "bytes": num_bytes}


def test_the_loss_is_weighted_by_tokens_not_by_documents(tiny: Any) -> None:
    task = tiny.prepared(tiny.recipe("clm")).task
    found = measure(
        [lm_record(90.0, 9, correct=3), lm_record(1.0, 1, correct=1)], task, seconds=2.0
    )
    assert found.loss == found.value("loss") == pytest.approx(9.1)
    assert found.value("perplexity") == pytest.approx(math.exp(9.1))
    assert found.value("bits_per_byte") == pytest.approx(91 / 20 / math.log(2))
    assert found.value("accuracy") == 0.4
    assert (found.examples, found.seconds) == (2, 2.0)


def test_without_tokens_there_is_no_loss(tiny: Any) -> None:
    task = tiny.prepared(tiny.recipe("clm")).task
    found = measure([lm_record(0.0, 0)], task, seconds=0)
    assert math.isnan(found.loss)
    made = metrics_of(found, task, split="test", options=Eval(resamples=0), seed=13)
    written = made.to_json()
    assert written["loss"] is None
    assert written["metrics"]["perplexity"] == {"value": None, "low": None, "high": None}
    json.dumps(written, allow_nan=False)


def test_metrics_have_intervals_and_labels(tiny: Any) -> None:
    task = tiny.prepared(tiny.recipe("classification")).task
    records = [
        {"gold": gold, "prediction": "positive", "nll": 0.5, "items": 1}
        for gold in ["positive"] * 6 + ["negative"] * 2
    ]
    evaluated = measure(records, task, seconds=1.23456)
    options = Eval(resamples=200)
    found = metrics_of(evaluated, task, split="test", options=options, seed=13).to_json()
    assert found["metrics"]["accuracy"]["value"] == 0.75
    assert (
        0.25
        <= found["metrics"]["accuracy"]["low"]
        < 0.75
        < found["metrics"]["accuracy"]["high"]
        <= 1.0
    )
    assert found["by_label"]["negative"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 2.0,
    }
    assert found["signature"] == "bootstrap:percentile|resamples:200|seed:13"
    assert (found["loss"], found["seconds"]) == (0.5, 1.235)
    again = metrics_of(evaluated, task, split="test", options=options, seed=13)
    assert found == again.to_json()
    assert Metrics.from_json(found).to_json() == found


def test_a_translation_carries_the_signatures_of_sacrebleu(tiny: Any) -> None:
    task = tiny.prepared(tiny.recipe("translation")).task
    records = [{"gold": "Os conozco.", "prediction": "Os conozco.", "nll": 1.0, "items": 4}]
    evaluated = measure(records, task, seconds=0)
    found = metrics_of(evaluated, task, split="test", options=Eval(), seed=13).to_json()
    assert found["signature"].startswith("BLEU|nrefs:1|case:mixed|eff:no|tok:13a")
    assert "chrF2|" in found["signature"]
    assert found["metrics"]["chrf"]["value"] == pytest.approx(100)


@pytest.mark.parametrize(
    "metric", ["loss", "perplexity", "bits_per_byte", "ter", "wer", "my_module.mse"]
)
def test_less_of_these_is_better(metric: str) -> None:
    assert is_better(metric, 1.0, 2.0)
    assert not is_better(metric, 2.0, 1.0)


@pytest.mark.parametrize("metric", ["f1", "accuracy", "f1_macro", "mcc", "bleu", "chrf"])
def test_more_of_these_is_better(metric: str) -> None:
    assert is_better(metric, 2.0, 1.0)
    assert not is_better(metric, 1.0, 2.0)


def test_equal_is_no_improvement_and_nan_is_never_one() -> None:
    assert not is_better("f1", 1.0, 1.0)
    assert is_better("loss", 5.0, None)
    assert not is_better("loss", math.nan, None)


def test_json_has_no_infinities() -> None:
    assert [finite(value) for value in (1.5, math.inf, math.nan, None)] == [1.5, None, None, None]


def test_validating_gives_the_metric_that_was_asked_for(tiny: Any) -> None:
    recipe = tiny.recipe("classification")
    prepared, model = tiny.prepared(recipe), tiny.model(recipe)
    encoded = prepared.encoded["validation"]
    records = list(Forward(prepared.task, model, tiny.processes, 1).predictions(encoded))
    evaluated = measure(records, prepared.task, seconds=0)
    for metric in ("loss", "accuracy", "f1_macro", "mcc"):
        computed = Forward(prepared.task, model, tiny.processes, 64)
        found = validate(computed, encoded, metric=metric)
        assert found == pytest.approx(evaluated.value(metric), abs=1e-6)


def of_one_answer(tiny: Any, recipe: Any, bias: float) -> tuple[Forward, Any]:
    """A model with its task, and validation rows; the model says the same of every text."""
    prepared, model = tiny.prepared(recipe), tiny.model(recipe)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.fill_(bias)
    return Forward(prepared.task, model, tiny.processes, 64), prepared.encoded["validation"]


def test_validation_says_when_all_rows_are_given_one_answer(
    tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """While there is time to stop: a rate that is too high has taught the model what is right on average."""
    computed, encoded = of_one_answer(tiny, tiny.recipe("regression", data={"max_rows": 24}), 2.5)
    validate(computed, encoded, metric="spearman")
    said = "warning: data.validation: every answer is 2.5, though the gold differs; if this stays so, lower train.learning_rate"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("threshold", "is_said"), [("tuned", False), (0.5, True)])
def test_validation_does_not_judge_answers_whose_thresholds_are_still_to_be_tuned(
    tiny: Any, threshold: Any, is_said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all probabilities under one half, as rare labels have them, every answer is [] before."""
    recipe = tiny.recipe(
        "multi_label", classification={"threshold": threshold}, data={"max_rows": 24}
    )
    computed, encoded = of_one_answer(tiny, recipe, -1.0)
    validate(computed, encoded, metric="f1_macro")
    assert ("every answer is []" in capsys.readouterr().err) == is_said


def test_an_evaluation_keeps_and_says_what_is_always_predicted(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of tuned thresholds too, as they are those that the model has now."""
    recipe = tiny.recipe(
        "multi_label", classification={"threshold": "tuned"}, data={"max_rows": 24}
    )
    computed, encoded = of_one_answer(tiny, recipe, -1.0)
    evaluate_split(
        computed, encoded, split="test", options=Eval(resamples=0), folder=tmp_path / "eval"
    )
    assert "data.test: every answer is [], though the gold differs" in capsys.readouterr().err
    assert (
        json.loads((tmp_path / "eval/analysis.json").read_text())["suspicions"]["always_predicted"]
        == "[]"
    )
    assert "<b>Always predicted:</b> <code>[]</code>" in (tmp_path / "eval/report.html").read_text()


def test_every_rank_chooses_by_what_the_first_one_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one stops early and the others wait for it."""
    second = Replicated(SimpleNamespace(num_processes=2, process_index=1))
    monkeypatch.setattr(Forward, "predictions", lambda *_: [])
    monkeypatch.setattr(
        "accelerate.utils.broadcast_object_list", lambda values: operator.setitem(values, 0, 0.75)
    )
    computed: Any = Forward(None, None, second, 1)  # type: ignore[arg-type]
    assert validate(computed, None, metric="accuracy") == 0.75  # type: ignore[arg-type]


def test_a_second_evaluation_takes_the_place_of_the_first(tiny: Any, tmp_path: Path) -> None:
    recipe = tiny.recipe("classification")
    prepared, model = tiny.prepared(recipe), tiny.model(recipe)
    folder = tmp_path / "eval" / "test"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("old")
    for _ in range(2):
        evaluate_split(
            Forward(prepared.task, model, tiny.processes, 64),
            prepared.encoded["validation"],
            split="test",
            options=Eval(resamples=0),
            folder=folder,
        )
    assert sorted(path.name for path in folder.iterdir()) == [
        "analysis.json",
        "metrics.json",
        "predictions.jsonl",
        "report.html",
    ]
    assert (folder / "report.html").read_text() != "old"
    assert [path.name for path in folder.parent.iterdir()] == ["test"]


def test_the_table_shows_values_with_their_intervals() -> None:
    found = Metrics(
        task="classification",
        split="test",
        examples=3,
        loss=0.25,
        confidence=0.9,
        metrics={"f1": Interval(0.5, 0.4, 0.61234), "mcc": Interval(None)},
        signature="",
        seconds=0,
    )
    shown = [line.split() for line in metrics_table(found).splitlines()]
    assert shown == [
        ["metric", "value", "90", "%", "interval"],
        ["f1", "0.5000", "0.4000", "...", "0.6123"],
        ["mcc", "-", "-"],
        ["loss", "0.2500"],
    ]


def test_further_metrics_stand_beside_the_tasks_own(tiny: Any, tmp_path: Path) -> None:
    recipe = tiny.recipe(
        "ner", eval={"metrics": ["lmkit_tagging"], "resamples": 20, "interval": "bca"}
    )
    prepared = tiny.prepared(recipe)
    found = evaluate_split(
        Forward(prepared.task, tiny.model(recipe), tiny.processes, 999),
        prepared.encoded["validation"],
        split="validation",
        options=recipe.eval,
        folder=tmp_path / "eval",
    )
    assert found is not None
    assert found.metrics["lmkit_tagging.f1"].value == found.metrics["f1"].value
    assert found.metrics["lmkit_tagging.f1"].low is not None
    assert "bootstrap:bca|resamples:20" in found.signature


def test_language_model_has_no_predictions_for_other_metrics(tiny: Any) -> None:
    from lmkit.errors import RecipeError
    from lmkit.preflight import check_metrics

    with pytest.raises(RecipeError, match=r"eval.metrics: a language model has no predictions"):
        check_metrics(tiny.recipe("clm", eval={"metrics": ["lmkit_tagging"]}))
