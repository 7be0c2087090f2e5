"""One label, several, or a number per text or pair: chosen by the data, weighted and tuned as asked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from lmkit.batch import Batch
from lmkit.data.splits import load_splits
from lmkit.errors import DataError, LmkitError, RecipeError
from lmkit.recipe import load_recipe
from lmkit.tasks.classification.problem import CLASSIFICATION, best_threshold
from lmkit.tasks.classification.task import Classification


def write(folder: Path, name: str, *rows: dict[str, Any]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def learned(path: str, **sections: Any) -> Any:
    recipe = load_recipe(
        {
            "task": "classification",
            "name": "x",
            **sections,
            "data": {"train": path, **sections.get("data", {})},
        }
    )
    return load_splits(recipe, CLASSIFICATION, wanted=("train",))


def task_with(facts: dict[str, Any], **sections: Any) -> Classification:
    return CLASSIFICATION.task(  # type: ignore[return-value]
        load_recipe({"task": "classification", "name": "x", **sections}), facts, None
    )


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        (["good", "bad"], "single_label", ["bad", "good"]),
        ([3, 10, 3], "single_label", ["3", "10"]),
        ([True, False], "single_label", ["false", "true"]),
        (["1", "0"], "single_label", ["0", "1"]),
        ([["a", "b"], [], ["b"]], "multi_label", ["a", "b"]),
        ([[1], [10, 2]], "multi_label", ["1", "2", "10"]),
        ([1, 2.5, 3], "regression", ["value"]),
        (["4.20", "5"], "regression", ["value"]),
    ],
)
def test_the_data_tell_the_kind(
    tmp_path: Path, labels: list[Any], kind: str, names: list[str]
) -> None:
    path = write(
        tmp_path,
        "a.jsonl",
        *({"text": f"text {i}", "label": label} for i, label in enumerate(labels)),
    )
    facts = learned(path).facts
    assert (facts["kind"], facts["labels"], facts["is_pair"]) == (kind, names, False)


TEXTS = [f"the text of row {i}" for i in range(20)]
KINDS = ["good", "bad"] * 10


@pytest.mark.parametrize(
    ("texts", "labels", "is_said"),
    [
        (KINDS, TEXTS, True),
        (KINDS, [TEXTS[i // 2 + 5] for i in range(20)], False),  # half as many labels as rows
        (KINDS, [TEXTS[max(0, i - 7)] for i in range(20)], True),  # more labels than texts
        (TEXTS, [str(i) for i in range(20)], True),
        (TEXTS, KINDS, False),
        (TEXTS, [TEXTS[max(0, i - 7)] for i in range(20)], False),
        (TEXTS[:4], TEXTS[:4], False),
    ],
)
def test_labels_that_seem_to_be_another_column_are_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    texts: list[str],
    labels: list[str],
    is_said: bool,
) -> None:
    path = write(
        tmp_path, "a.jsonl", *({"text": a, "label": b} for a, b in zip(texts, labels, strict=True))
    )
    assert len(learned(path).rows["train"]) == len(texts)
    said = capsys.readouterr().err
    assert ("are data.columns.text and data.columns.label the right columns?" in said) is is_said
    assert (
        f"warning: data.train: 20 rows have {len(set(labels))} labels, such as '{max(labels, key=len)}'"
        in said
    ) is is_said


def test_both_texts_of_a_pair_are_what_repeats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"text": "one", "text_pair": text, "label": str(i % 11)} for i, text in enumerate(TEXTS)
    ]
    learned(write(tmp_path, "a.jsonl", *rows))
    assert capsys.readouterr().err == ""


def test_vectors_of_zeros_and_ones_are_refused(tmp_path: Path) -> None:
    rows = [{"text": text, "label": [i % 2, 1 - i % 2]} for i, text in enumerate(TEXTS)]
    with pytest.raises(
        DataError,
        match=r"data.train: every row has both labels, 0 and 1.*\n  give each row the names",
    ):
        learned(write(tmp_path, "a.jsonl", *rows))
    rows[3]["label"] = [1]  # so they are names
    assert learned(write(tmp_path, "b.jsonl", *rows)).facts["labels"] == ["0", "1"]


def test_decimals_that_come_late_are_not_taken_for_names(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "a.jsonl",
        *({"text": f"text {i}", "label": str(i % 5)} for i in range(200)),
        {"text": "x", "label": "2.5"},
    )
    with pytest.raises(
        RecipeError,
        match=r"classification\.kind: the first rows have whole numbers, later ones others, such as 2\.5",
    ):
        task_with(learned(path).facts)
    facts = learned(path, classification={"kind": "single_label"}).facts
    assert task_with(facts, classification={"kind": "single_label"}).labels[:3] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("kind", "first"), [("regression", 3.0), ("multi_label", ["3"]), ("single_label", "3")]
)
def test_the_recipe_overrides_what_the_data_tell(tmp_path: Path, kind: str, first: Any) -> None:
    path = write(tmp_path, "a.jsonl", {"text": "a", "label": "3"}, {"text": "b", "label": "4"})
    assert learned(path, classification={"kind": kind}).rows["train"][0]["label"] == first


@pytest.mark.parametrize(
    ("first", "second"),
    [("sentence1", "sentence2"), ("premise", "hypothesis"), ("text", "text_pair")],
)
def test_two_texts_make_a_pair(tmp_path: Path, first: str, second: str) -> None:
    path = write(tmp_path, "a.jsonl", *({first: "a", second: "b", "label": n} for n in (1, 2)))
    splits = learned(path)
    assert splits.facts["is_pair"]
    assert splits.rows["train"][0] == {"id": 0, "text": "a", "text_pair": "b", "label": "1"}


def test_cells_of_several_labels_are_parted(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\none\ta; b\ntwo\t\nthree\tb\n")
    splits = learned(str(path), classification={"kind": "multi_label", "separator": ";"})
    assert [row["label"] for row in splits.rows["train"]] == [["a", "b"], [], ["b"]]
    assert (splits.facts["counts"], splits.facts["rows"]) == ([1, 2], 3)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "b", "label": "a"}, None),
        ({"text": "b", "label": 7}, "'label' is a number; a list of labels is expected"),
        (
            {"text": "b", "label": [0, 1, 0]},
            "holds '0' twice; the labels that apply are expected, not a vector of zeros and ones",
        ),
        ({"text": "b", "label": [None]}, r"'label\[0\]' is null"),
    ],
)
def test_lists_of_labels_are_checked(
    tmp_path: Path, row: dict[str, Any], problem: str | None
) -> None:
    path = write(tmp_path, "a.jsonl", {"text": "a", "label": ["a"]}, row)
    if problem is None:
        assert learned(path).rows["train"][1]["label"] == ["a"]
    else:
        with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{problem}"):
            learned(path)


@pytest.mark.parametrize("value", ["high", None, float("inf"), True, [1.5]])
def test_numbers_are_checked(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path, "a.jsonl", {"text": "a", "label": 1.5}, {"text": "b", "label": value})
    with pytest.raises(DataError, match=r"a\.jsonl:2: 'label' is .*; a number is expected"):
        learned(path, classification={"kind": "regression"})


@pytest.mark.parametrize(
    ("facts", "sections", "key"),
    [
        (
            {"kind": "regression", "labels": ["value"]},
            {"classification": {"class_weights": "balanced"}},
            "class_weights",
        ),
        (
            {"kind": "regression", "labels": ["value"]},
            {"train": {"label_smoothing": 0.1}},
            "label_smoothing",
        ),
        ({"kind": "regression", "labels": ["value"]}, {"data": {"labels": ["a"]}}, "data.labels"),
        (
            {"kind": "single_label", "labels": ["a", "b"]},
            {"classification": {"threshold": 0.3}},
            "threshold",
        ),
        (
            {"kind": "single_label", "labels": ["good", "bad"]},
            {"classification": {"class_weights": {"bda": 2}}},
            "mean 'bad'",
        ),
    ],
)
def test_options_without_effect_are_refused(
    facts: dict[str, Any], sections: dict[str, Any], key: str
) -> None:
    with pytest.raises(RecipeError, match=key):
        task_with(facts, **sections)


# ---------------------------------------------------------------------------------- losses

LOGITS = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.1, -0.7], [0.0, 0.2, 0.4]])


def summed(task: Classification, labels: torch.Tensor, logits: torch.Tensor = LOGITS) -> float:
    return task._losses(logits, labels, training=True).sum().item()


def test_balanced_weights_are_scikit_learns() -> None:
    facts = {"kind": "single_label", "labels": ["a", "b", "c"], "rows": 10, "counts": [7, 2, 1]}
    task = task_with(facts, classification={"class_weights": "balanced"})
    expected = compute_class_weight("balanced", classes=np.arange(3), y=[0] * 7 + [1] * 2 + [2])
    assert task._weights() == pytest.approx(expected)
    labels = torch.tensor([0, 2, 1])
    weight = torch.tensor(expected, dtype=torch.float32)
    assert summed(task, labels) == pytest.approx(
        cross_entropy(LOGITS, labels, weight=weight, reduction="sum").item()
    )
    assert task._losses(LOGITS, labels, training=False).sum().item() == pytest.approx(
        cross_entropy(LOGITS, labels, reduction="sum").item()
    )


def test_given_weights_leave_the_other_labels_at_one() -> None:
    facts = {"kind": "single_label", "labels": ["a", "b", "c"]}
    task = task_with(facts, classification={"class_weights": {"b": 5}})
    assert task._weights() == [1.0, 5.0, 1.0]


def test_several_labels_are_decisions_of_their_own() -> None:
    facts = {"kind": "multi_label", "labels": ["a", "b", "c"], "rows": 10, "counts": [5, 2, 0]}
    labels = torch.tensor([[1, 0, 0], [0, 1, 1], [-100, -100, -100]])
    expected = binary_cross_entropy_with_logits(
        LOGITS[:2], labels[:2].float(), reduction="sum"
    ).item()
    assert summed(task_with(facts), labels) == pytest.approx(expected)
    assert Batch({}, labels, weights=torch.tensor([1.0, 1.0, 1.0])).items == 6
    assert Batch({}, labels, weights=torch.tensor([0.5, 0.5, 1.0])).items == 3
    weighted = binary_cross_entropy_with_logits(
        LOGITS[:2], labels[:2].float(), pos_weight=torch.tensor([1.0, 4.0, 1.0]), reduction="sum"
    ).item()
    assert summed(
        task_with(facts, classification={"class_weights": "balanced"}), labels
    ) == pytest.approx(weighted)
    smooth = binary_cross_entropy_with_logits(
        LOGITS[:2], labels[:2] * 0.8 + 0.1, reduction="sum"
    ).item()
    assert summed(task_with(facts, train={"label_smoothing": 0.2}), labels) == pytest.approx(smooth)


def test_the_loss_of_numbers_is_the_squared_error_of_those_that_count() -> None:
    task = task_with({"kind": "regression", "labels": ["value"]})
    labels = torch.tensor([[2.0], [math.nan], [-100.0]])
    logits = torch.tensor([[1.5], [7.0], [-99.0]], requires_grad=True)
    assert summed(task, labels, logits) == pytest.approx(0.25 + 1.0)
    assert Batch({}, labels, weights=torch.ones(3)).items == 2
    task._losses(logits, labels, training=True).sum().backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [-1.0, 0.0, 2.0]


# ---------------------------------------------------------------------------------- thresholds


def test_the_tuned_threshold_has_the_best_f1_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(60, generator=generator).round(decimals=1).tolist()
    gold = (torch.rand(60, generator=generator) < torch.tensor(probabilities) ** 2).tolist()

    def f1(threshold: float) -> float:
        return float(f1_score(gold, [p >= threshold for p in probabilities]))

    assert f1(best_threshold(probabilities, gold)) == max(
        f1(threshold / 100) for threshold in range(1, 100)
    )


def test_a_label_that_never_applies_keeps_the_threshold_in_the_middle() -> None:
    assert best_threshold([0.9, 0.2], [False, False]) == 0.5


def test_labels_are_predicted_from_their_own_threshold() -> None:
    facts = {"kind": "multi_label", "labels": ["a", "b", "c"]}
    part = {"scores": [0.4, 0.4, 0.9], "nll": 1.0, "items": 3}
    row = {"id": 0, "text": "x", "label": ["a"]}
    assert task_with(facts).combine(row, [part])["prediction"] == ["c"]
    assert task_with(facts | {"thresholds": [0.3, 0.5, 0.95]}).combine(row, [part])[
        "prediction"
    ] == ["a"]
    assert task_with(facts, classification={"threshold": 0.4}).combine(row, [part])[
        "prediction"
    ] == ["a", "b", "c"]


def test_thresholds_are_learned_of_the_validation_rows_and_kept_with_the_model(tiny: Any) -> None:
    from lmkit.commands.predict import Predictor

    run = tiny.fit(tiny.recipe("multi_label"))
    described = json.loads((run.model / "lmkit.json").read_text())
    records = [
        json.loads(line)
        for line in (run.eval_folder("validation") / "predictions.jsonl").read_text().splitlines()
    ]
    labels = described["facts"]["labels"]
    expected = [
        best_threshold(
            [r["probabilities"][label] for r in records], [label in r["gold"] for r in records]
        )
        for label in labels
    ]
    assert described["facts"]["thresholds"] == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) > 1
    answers = Predictor(str(run.path)).predict([record["text"] for record in records])
    assert [answer["prediction"] for answer in answers] == [
        record["prediction"] for record in records
    ]


# ---------------------------------------------------------------------------------- elsewhere


@pytest.mark.parametrize("kind", ["classification", "multi_label", "pairs", "regression"])
def test_the_pipeline_of_transformers_says_the_same(tiny: Any, kind: str) -> None:
    from transformers import pipeline

    from lmkit.commands.predict import Predictor

    run = tiny.fit(tiny.recipe(kind, train={"learning_rate": 0.05}))
    predictor, pipe = (
        Predictor(str(run.path)),
        pipeline("text-classification", model=str(run.model), top_k=None),
    )
    texts = ["12 Main Street, Springfield", "8128 S. DR MARTIN LUTHER KING JR Drive"]
    if kind == "pairs":
        ours = predictor.predict(["\t".join(texts)])
        theirs = [pipe({"text": texts[0], "text_pair": texts[1]})]
    else:
        ours, theirs = predictor.predict(texts), pipe(texts)
    for mine, its in zip(ours, theirs, strict=True):
        its = its[0] if isinstance(its[0], list) else its
        expected = {"value": mine["prediction"]} if kind == "regression" else mine["probabilities"]
        assert {entry["label"]: entry["score"] for entry in its} == pytest.approx(
            expected, abs=1e-5
        )


def test_a_single_text_is_no_pair(tiny: Any) -> None:
    task = tiny.prepared(tiny.recipe("pairs")).task
    assert task.problem.rows(["a\tb"], task.facts) == [{"id": 0, "text": "a", "text_pair": "b"}]
    with pytest.raises(
        LmkitError, match="text 2: this model reads pairs of texts, and here is one"
    ):
        task.problem.rows(["a\tb", "a"], task.facts)
