"""Which row is in which slice, and what may be sliced by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmkit.errors import RecipeError
from lmkit.evaluation.evaluate import evaluate_split
from lmkit.evaluation.forward import Forward
from lmkit.evaluation.options import check_eval_keys
from lmkit.evaluation.slices import by_column, by_range, by_value, num_words, word_shares
from lmkit.tasks.answers import Entities, Text


def rows(found: Any) -> dict[str, list[int]]:
    return {name: members.tolist() for name, members in found.items()}


def test_quartiles_keep_equal_values_together_and_lose_no_row() -> None:
    assert rows(by_range([5, 5, 5, 5, 1, 9])) == {"1": [4], "5 – 9": [0, 1, 2, 3, 5]}
    assert sorted(row for part in rows(by_range(list(range(10)))).values() for row in part) == list(
        range(10)
    )


def test_rows_without_any_unknown_word_are_a_slice_of_their_own() -> None:
    assert rows(by_range([0, 0.5, 0, 0.25], shares=True)) == {
        "0 %": [0, 2],
        "25 %": [3],
        "50 %": [1],
    }


def test_a_column_of_numbers_is_sliced_by_range_and_one_of_words_by_value() -> None:
    assert list(by_column([str(i) for i in range(40)])) == [
        "0 – 9",
        "10 – 19",
        "20 – 29",
        "30 – 39",
    ]
    assert rows(by_column(["web", None, "news", "web"])) == {
        "web": [0, 3],
        "(empty)": [1],
        "news": [2],
    }


def test_rare_values_are_put_together() -> None:
    found = rows(by_value([[f"v{i}"] for i in range(30)] + [["v7"]]))
    assert len(found) == 24
    assert found["v7"] == [7, 30]
    assert len(found["(7 others)"]) == 7


def test_a_sentence_is_in_a_slice_of_each_of_its_types() -> None:
    assert Entities().labels({"gold": ["B-PER", "I-PER", "O", "B-LOC"]}) == ["LOC", "PER"]
    assert Entities().labels({"gold": ["O"]}) == ["(no entity)"]
    assert Entities().labels({"gold": ["O", "B", "I"]}) == ["_"]
    assert num_words({"source": "很好"}, Text()) == 2


def test_shares_of_unknown_and_fragmented_words(tiny: Any) -> None:
    task = tiny.prepared(tiny.recipe("classification")).task
    words = [word for word in sorted(task.tokenizer.get_vocab()) if word.isalpha()]
    whole = next(word for word in words if len(task.tokenizer.tokenize(word + word)) > 1)
    records = [{"text": f"{whole} {whole}{whole}"}, {"text": whole}]
    assert word_shares(records, task, "fragmentation") == [0.5, 0.0]
    assert word_shares([{"text": f"{whole} ☃"}], task, "unknown") == [0.5]


@pytest.mark.parametrize(
    ("task", "options", "place"),
    [
        ("translation", {"slices": ["label"]}, "eval.slices"),
        ("mlm", {"stride": 8}, "eval.stride"),
        ("clm", {"stride": 33}, "eval.stride"),
        ("clm", {"pseudo_perplexity": True}, "eval.pseudo_perplexity"),
        ("ner", {"temperature": True}, "eval.temperature"),
    ],
)
def test_a_key_that_has_no_effect_is_refused(
    tiny: Any, task: str, options: dict[str, Any], place: str
) -> None:
    with pytest.raises(RecipeError, match=place):
        check_eval_keys(tiny.recipe(task, eval=options))


def data(folder: Path) -> dict[str, Any]:
    lines = [
        {
            "text": f"some text {i}",
            "label": "ab"[i % 2],
            "genre": ["web", "news"][i % 3 == 0],
            "n": [1],
        }
        for i in range(12)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    where = str(folder / "rows.jsonl")
    return {
        "train": where,
        "validation": where,
        "columns": {},
        "labels": ["a", "b"],
        "max_rows": None,
    }


def test_a_column_that_no_task_reads_can_be_sliced_by_and_changes_nothing_else(
    tiny: Any, tmp_path: Path
) -> None:
    plain = tiny.recipe("classification", data=data(tmp_path))
    recipe = tiny.recipe("classification", data=data(tmp_path), eval={"slices": ["genre", "label"]})
    assert (
        tiny.splits(recipe).rows["validation"].fingerprint
        == tiny.splits(plain).rows["validation"].fingerprint
    )
    assert tiny.splits(recipe).rows["validation"][0].keys() == {"id", "text", "label"}
    from lmkit.train.prepare import prepare

    prepared = prepare(recipe, tiny.splits(recipe), None)
    evaluate_split(
        Forward(prepared.task, tiny.model(plain), tiny.processes, 64),
        prepared.encoded["validation"],
        split="validation",
        options=recipe.eval,
        folder=tmp_path / "eval",
    )
    found = json.loads((tmp_path / "eval" / "analysis.json").read_text())
    assert [(part["slice"], part["examples"]) for part in found["slices"]["genre"]] == [
        ("web", 8),
        ("news", 4),
    ]
    assert {part["slice"] for part in found["slices"]["label"]} == {"a", "b"}
    accuracy = [
        part["metrics"]["accuracy"]["value"] * part["examples"] for part in found["slices"]["genre"]
    ]
    written = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert sum(accuracy) == pytest.approx(12 * written["metrics"]["accuracy"]["value"])


@pytest.mark.parametrize(("name", "said"), [("gerne", "did you mean 'genre'"), ("n", "a list")])
def test_a_column_that_is_not_there_is_an_error_with_a_suggestion(
    tiny: Any, tmp_path: Path, name: str, said: str
) -> None:
    recipe = tiny.recipe("classification", data=data(tmp_path), eval={"slices": [name]})
    with pytest.raises(RecipeError, match=f"eval.slices.*(\n.*)*{said}"):
        tiny.splits(recipe)
