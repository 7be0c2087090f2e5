from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lmkit.errors import RecipeError
from lmkit.evaluation.analysis import Background
from lmkit.evaluation.baselines import (
    answers_of,
    baselines_table,
    check_baselines,
    compare_baselines,
)
from lmkit.evaluation.evaluate import evaluate_split
from lmkit.evaluation.forward import Forward
from lmkit.metrics import classification_statistics
from lmkit.recipe.schema import Data, Eval, Recipe
from lmkit.records import Metrics, Record
from lmkit.tasks.classification.baselines import logistic_regression
from lmkit.tasks.ner.baselines import most_frequent_tags
from lmkit.tasks.ner.problem import TAGGING
from lmkit.tasks.registry import headline
from lmkit.tasks.translation.baselines import ibm_model_1, word_by_word

NAMES = {
    "classification": {"majority_class", "tfidf_logistic_regression"},
    "pairs": {"majority_class", "tfidf_logistic_regression"},
    "multi_label": {"usual_labels", "tfidf_logistic_regression"},
    "regression": {"mean", "tfidf_ridge_regression"},
    "ner": {"most_frequent_tag"},
    "translation": {"source_copy", "nearest_training_pair", "word_by_word"},
    "mlm": {"kneser_ney_4_gram"},
    "clm": {"kneser_ney_4_gram"},
    "denoise": {"kneser_ney_4_gram"},
}


@pytest.mark.parametrize("task", NAMES)
def test_every_task_has_its_sceptics(tiny: Any, task: str, tmp_path: Path) -> None:
    """Written beside the metrics, over the same items, with a paired verdict; JSON throughout."""
    recipe = tiny.recipe(task, data={"max_rows": 30}, eval={"resamples": 60})
    prepared = tiny.prepared(recipe)
    test = prepared.encoded["validation"]

    found = evaluate_split(
        Forward(prepared.task, tiny.model(recipe), tiny.processes, 999),
        test,
        split="validation",
        options=recipe.eval,
        folder=tmp_path / "eval",
        background=Background(baseline=prepared.splits.rows["train"]),
    )
    assert found is not None
    assert found.to_json() == json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert Metrics.from_json(found.to_json()).to_json() == found.to_json()
    assert found.baselines is not None
    assert found.baselines.keys() == NAMES[task]
    for score in found.baselines.values():
        assert score.metrics.keys() == found.metrics.keys() - {"truncated"}
        metric = score.metric
        assert metric == headline(found.task, found.metrics)
        assert score.difference == pytest.approx(
            found.metrics[metric].value - score.metrics[metric].value
        )
        assert score.low <= score.difference <= score.high
        assert score.verdict in ("model is better", "baseline is better", "not distinguishable")
    assert "this model" in baselines_table(found)


def test_ngrams_know_more_than_a_random_model_of_the_same_tokens(tiny: Any) -> None:
    recipe = tiny.recipe("clm", data={"max_rows": 200}, eval={"resamples": 100})
    prepared = tiny.prepared(recipe)
    test = prepared.encoded["validation"]
    train = prepared.splits.rows["train"]
    (records,) = answers_of(prepared.task, train, test, [{}] * len(test)).values()
    assert [record["items"] for record in records] == [
        sum(len(p["labels"]) for p in test.example(i)) for i in range(len(test))
    ]
    loss = sum(record["nll"] for record in records) / sum(record["items"] for record in records)
    assert 1 < loss < 0.8 * math.log(len(prepared.task.tokenizer))


def test_logistic_regression_is_well_above_chance_on_real_tweets(tiny: Any) -> None:
    splits = tiny.splits(tiny.recipe("classification", data={"max_rows": 600}))
    train, test = splits.rows["train"][:], splits.rows["validation"][:]
    found = logistic_regression(
        [r["text"] for r in train], [r["label"] for r in train], [r["text"] for r in test]
    )
    gold = [r["label"] for r in test]
    accuracy = classification_statistics(gold, found, splits.facts["labels"]).values()["accuracy"]
    assert accuracy > max(gold.count(label) for label in set(gold)) / len(gold) + 0.05


def test_texts_without_spaces_are_read_by_characters() -> None:
    texts = ["很好喜歡", "喜歡很好", "難過不好", "不好難過"] * 3
    assert logistic_regression(texts, ["+", "+", "-", "-"] * 3, ["喜歡", "難過"]) == ["+", "-"]


def test_most_frequent_tag_of_a_word_and_outside_for_the_unknown() -> None:
    seen = [(["May", "May", "May", "York"], ["B-PER", "O", "O", "I-LOC"])]
    assert most_frequent_tags(seen, [["May", "York", "x"]], labels=["O"]) == [["O", "B-LOC", "O"]]
    bare = [(["new", "York"], ["O", "I"])]
    assert most_frequent_tags(bare, [["York", "York"]], labels=["O", "B", "I"]) == [["B", "I"]]
    assert most_frequent_tags(bare, [["York"]], labels=["O", "I", "NN"]) == [
        ["I"]
    ]  # a part of speech


def test_parts_of_speech_have_no_outside() -> None:
    seen = [(["the", "dog", "cat"], ["DET", "NOUN", "NOUN"])]
    assert most_frequent_tags(seen, [["the", "cow"]], labels=["DET", "NOUN"]) == [["DET", "NOUN"]]


def test_dictionary_finds_what_always_goes_together() -> None:
    pairs = [("the house", "das Haus"), ("the book", "das Buch"), ("a book", "ein Buch")]
    assert ibm_model_1(pairs) == {"the": "das", "house": "haus", "book": "buch", "a": "ein"}
    assert word_by_word(pairs, ["A house, the zebra!"]) == ["Ein haus, das zebra!"]


def test_baseline_without_training_rows_is_refused() -> None:
    facts = {"labels": ["O", "B-X", "I-X"]}
    check_baselines(Recipe(task="ner", data=Data(train="x")), facts)
    with pytest.raises(RecipeError, match=r"eval.baseline: no data to learn a baseline from"):
        check_baselines(Recipe(task="ner"), facts)


def test_a_task_without_baselines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TAGGING, "baselines", lambda facts: ())
    with pytest.raises(RecipeError, match="no baseline"):
        check_baselines(Recipe(task="ner", data=Data(train="x")), {"labels": ["O", "A"]})


def test_no_resamples_no_verdict(tiny: Any) -> None:
    recipe = tiny.recipe("classification")
    prepared = tiny.prepared(recipe)
    test = prepared.encoded["validation"]
    records = [Record({"gold": row["label"], "prediction": "positive"}) for row in test.rows]
    train = prepared.splits.rows["train"]
    found = compare_baselines(prepared.task, train, test, records, Eval(resamples=0))
    assert all(score.to_json().keys() == {"metrics"} for score in found.values())
