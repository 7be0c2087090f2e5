"""Modules of the evaluate library: lmkit's own, and a user's, without the network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lmkit.errors import RecipeError
from lmkit.metrics import classification_statistics, tagging_statistics, translation_statistics
from lmkit.metrics.custom import SHIPPED, Examples, custom_metrics, find_module
from lmkit.recipe import load_recipe

# a user's module, as the evaluate library's documentation writes them: numbers in, one number out
MODULE = """
import datasets
import evaluate
class Module(evaluate.Metric):
    def _info(self):
        kind = {kind}
        return evaluate.MetricInfo(description="", citation="", inputs_description="",
            features=datasets.Features({{"predictions": {predicted}, "references": kind}}))
    def _compute(self, predictions, references):
        {body}
"""


def module(
    folder: Path,
    body: str,
    *,
    kind: str = 'datasets.Value("int32")',
    predicted: str = "kind",
    name: str = "mine",
) -> str:
    place = folder / name
    place.mkdir()
    (place / f"{name}.py").write_text(MODULE.format(kind=kind, predicted=predicted, body=body))
    return str(place)


TAGS = [["B-LOC", "I-LOC", "O"], ["O", "B-PER"]], [["B-LOC", "O", "O"], ["O", "B-PER"]]
TEXTS = ["the house is red", "a dog barks"], ["the house was red", "a dog barks loudly"]


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("lmkit_classification", ["a", "b", "b"], ["a", "b", "a"], classification_statistics(["a", "b", "a"], ["a", "b", "b"], [])),
        ("lmkit_tagging", *TAGS, tagging_statistics(TAGS[1], TAGS[0])),
        ("lmkit_translation", *TEXTS, translation_statistics(*TEXTS)),
    ],
)  # fmt: skip
def test_own_metrics_are_modules_of_the_evaluate_library(
    name: str, predictions: Any, references: Any, expected: Any
) -> None:
    """``evaluate.load`` of what ships, and nothing is fetched."""
    import evaluate

    assert os.environ["HF_HUB_OFFLINE"] == "1"
    loaded = evaluate.load(str(SHIPPED / name))
    assert loaded.compute(predictions=predictions, references=references) == pytest.approx(
        expected.values()
    )
    found = custom_metrics([name], Examples(predictions, references), resamples=0)
    assert {key: interval.value for key, (interval, _) in found.items()} == pytest.approx(
        expected.values()
    )


def test_labels_become_numbers_where_the_module_wants_numbers(tmp_path: Path) -> None:
    place = module(
        tmp_path,
        'return {"off_by": sum(abs(p - r) for p, r in zip(predictions, references)) / len(references)}',
    )
    stars = ["one", "two", "three"]
    examples = Examples(["one", "three", "one"] * 9, stars * 9, labels=stars)
    found = custom_metrics([place], examples, resamples=100)
    interval, source = found["off_by"]
    assert source.key == "off_by"
    assert interval.value == pytest.approx(1.0)
    assert interval.low is not None
    assert interval.high is not None
    assert 0.5 < interval.low < 1 < interval.high < 1.5
    again = custom_metrics([place], examples, resamples=100)
    assert again == found


def test_reference_becomes_a_list_where_the_module_takes_several(tmp_path: Path) -> None:
    place = module(
        tmp_path,
        'return {"exact": sum(p in r for p, r in zip(predictions, references)) / len(references), "said": "a word"}',
        kind='datasets.Sequence(datasets.Value("string"))',
        predicted='datasets.Value("string")',
    )
    found = custom_metrics([place], Examples(["a", "b"], ["a", "c"]), resamples=0)
    assert {key: interval.value for key, (interval, _) in found.items()} == {"exact": 0.5}


def test_key_that_is_taken_gets_the_modules_name(tmp_path: Path) -> None:
    place = module(tmp_path, 'return {"accuracy": 1.0}')
    assert custom_metrics(
        [place], Examples(["a"], ["a"], labels=["a"]), taken=["accuracy"]
    ).keys() == {"mine.accuracy"}


def test_slow_module_has_values_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("lmkit.metrics.custom.MOST_SECONDS", 0)
    found = custom_metrics(
        [module(tmp_path, 'return {"x": 1.0}')], Examples(["a"] * 3, ["a"] * 3, labels=["a"])
    )
    assert found["x"][0].to_json() == {"value": 1.0, "low": None, "high": None}
    assert "no intervals" in capsys.readouterr().out


def test_module_that_fails_is_named(tmp_path: Path) -> None:
    place = module(tmp_path, 'raise ValueError("too few words")')
    with pytest.raises(
        RecipeError, match=r"eval.metrics: .*mine: refuses these predictions: too few words"
    ):
        custom_metrics([place], Examples(["a"], ["a"], labels=["a"]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lmkit_taging", "did you mean lmkit_tagging"),
        ("accuracy", r"model.trust_remote_code=true"),
        ("./metrics/nope", "no such file or folder"),
        ("nope.py", "no such file or folder"),
    ],
)
def test_module_that_is_not_there_is_refused_before_anything_is_trained(
    name: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        find_module(name, trust_remote_code=False)


def test_code_from_the_hub_needs_trust() -> None:
    assert find_module("accuracy", trust_remote_code=True) == "accuracy"


def test_path_of_a_recipe_is_found_from_its_folder(tmp_path: Path) -> None:
    module(tmp_path, "return {}")
    (tmp_path / "x.yaml").write_text("task: ner\neval: {metrics: [mine, lmkit_tagging]}\n")
    assert load_recipe(tmp_path / "x.yaml").eval.metrics == [
        str(tmp_path / "mine"),
        "lmkit_tagging",
    ]
