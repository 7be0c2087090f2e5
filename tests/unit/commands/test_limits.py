"""``lmkit eval --fail-under METRIC=NUMBER [--strict]``: an evaluation that a CI job can fail on."""

from __future__ import annotations

from typing import Any

import pytest

from lmkit.commands.evaluate import evaluate, failures, thresholds
from lmkit.errors import LmkitError
from lmkit.records import Interval, Metrics


def found(loss: float, **metrics: Interval) -> Metrics:
    return Metrics(
        task="ner",
        split="test",
        examples=3,
        loss=loss,
        confidence=0.95,
        metrics=metrics,
        signature="",
        seconds=1.0,
    )


FOUND = found(0.3, f1=Interval(0.5, 0.4, 0.6), ter=Interval(50.0, 45.0, 55.0))


@pytest.mark.parametrize(
    ("limits", "strict", "said"),
    [
        ({"f1": 0.42}, False, []),
        ({"f1": 0.42}, True, ["f1 is 0.4000 (lower end of the interval), under 0.42"]),
        ({"f1": 0.51, "ter": 49}, False, ["f1 is 0.5000, under 0.51", "ter is 50.0000, over 49"]),
        ({"ter": 52}, False, []),
        ({"ter": 52}, True, ["ter is 55.0000 (upper end of the interval), over 52"]),
        ({"loss": 0.2}, False, ["loss is 0.3000, over 0.2"]),
    ],
)
def test_what_is_worse_is_said(limits: dict[str, float], strict: bool, said: list[str]) -> None:
    assert failures(FOUND, limits, strict=strict) == said


def test_an_undefined_metric_does_not_pass() -> None:
    undefined = found(1.0, mcc=Interval(None))
    assert failures(undefined, {"mcc": 0.0}, strict=False) == ["mcc is undefined, under 0"]


def test_unknown_metrics_and_missing_intervals_are_refused() -> None:
    with pytest.raises(LmkitError, match=r"--fail-under: no metric 'f11'.*\n.*mean 'f1'"):
        failures(FOUND, {"f11": 0.1}, strict=False)
    with pytest.raises(LmkitError, match="--strict: loss has no interval"):
        failures(FOUND, {"loss": 0.1}, strict=True)
    with pytest.raises(LmkitError, match="'f1' is not METRIC=NUMBER"):
        thresholds(["f1"])
    assert thresholds(["f1=0.42", "ter=60"]) == {"f1": 0.42, "ter": 60.0}


def test_an_unknown_metric_is_refused_before_anything_is_evaluated(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe("mlm", base=tiny.base("mlm"))
    monkeypatch.setattr(
        "lmkit.models.load.load_trained", lambda *_: pytest.fail("a model was loaded")
    )
    with pytest.raises(LmkitError, match=r"--fail-under: no metric 'pseudo_perplexity'"):
        evaluate(recipe, limited=["loss", "perplexity", "accuracy", "pseudo_perplexity"])
