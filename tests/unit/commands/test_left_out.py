"""What was not read is said: rows that were cut, rows that were left out; by training, evaluating and predicting alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmkit.commands.evaluate import evaluate
from lmkit.commands.predict import Predictor
from lmkit.run import Run

LONG = "a good day and a bad one " * 20
HEAD = "was left out at 16 tokens (data.long_text=head)\n"


def write(path: Path, texts: list[str | None]) -> str:
    lines = [
        json.dumps({"text": text, "label": ("negative", "positive")[i % 2]}) + "\n"
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("left out")
    write(place / "train.jsonl", ["good", "bad", LONG, "day"])
    write(place / "validation.jsonl", [LONG, LONG, None, "one"])
    write(place / "test.jsonl", ["one", LONG, None, "two", LONG, LONG])
    return place


@pytest.fixture(scope="module")
def run(tiny: Any, folder: Path) -> Run:
    data = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    recipe = tiny.recipe(
        "classification",
        data=data
        | {
            "columns": {"label": "label"},
            "max_length": 16,
            "long_text": "head",
            "on_bad_row": "skip",
        },
        train={"max_steps": 1},
    )
    found: Run = tiny.fit(recipe)
    return found


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_training_counts_what_was_cut_and_left_out(run: Run) -> None:
    manifest = run.manifest
    assert manifest["examples"] == {"train": 4, "validation": 3}
    assert manifest["cut_rows"] == {"train": 1, "validation": 2}
    assert manifest["rejected_rows"] == 1
    (rejected,) = lines_of(run.rejects_file)
    assert (rejected["split"], rejected["problem"]) == (
        "validation",
        "'text' is null; text is expected",
    )


def test_training_says_what_was_cut_and_left_out(
    tiny: Any, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmkit.recipe import load_recipe
    from lmkit.train.prepare import prepare

    recipe = load_recipe(run.recipe_file)
    prepare(recipe, tiny.splits(recipe), None)
    said = capsys.readouterr().err
    assert f"warning: data.train: the end of 1 of 4 rows {HEAD}" in said
    assert f"warning: data.validation: the end of 2 of 3 rows {HEAD}" in said
    assert "warning: data.validation: 1 rows left out, the first at " in said


def metrics_of(*arguments: Any, **options: Any) -> dict[str, Any]:
    """The content of metrics.json."""
    metrics = evaluate(*arguments, **options)
    assert metrics is not None
    return metrics.to_json()


def test_evaluating_says_and_keeps_what_was_cut_and_left_out(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    found = metrics_of(str(run.path))
    out, err = capsys.readouterr()
    assert f"warning: data.test: the end of 3 of 5 rows {HEAD}" in err
    assert "warning: data.test: 1 rows left out, the first at " in err
    assert "evaluating on data.test: 5 rows\n" in out
    assert (found["examples"], found["cut_rows"], found["rejected_rows"]) == (5, 3, 1)
    assert run.metrics("test") == found
    (rejected,) = lines_of(run.eval_folder("test") / "rejects.jsonl")
    assert (rejected["split"], rejected["id"], rejected["problem"]) == (
        "test",
        2,
        "'text' is null; text is expected",
    )


def test_rows_that_are_too_long_are_not_among_those_said_to_be_evaluated(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = metrics_of(str(run.path), ["data.long_text=error"], output=str(tmp_path / "out"))
    out, err = capsys.readouterr()
    assert "evaluating on data.test: 2 rows\n" in out
    assert "warning: data.test: 4 rows left out, the first at " in err
    assert (found["examples"], found.get("cut_rows"), found["rejected_rows"]) == (2, None, 4)
    assert [row["id"] for row in lines_of(tmp_path / "out/eval/test/rejects.jsonl")] == [2, 1, 4, 5]


def test_what_a_temperature_is_fitted_on_is_cut_aloud_too(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(str(run.path), ["eval.temperature=true"], output=str(tmp_path / "out"))
    said = capsys.readouterr().err
    assert f"warning: data.validation: the end of 2 of 3 rows {HEAD}" in said
    assert f"warning: data.test: the end of 3 of 5 rows {HEAD}" in said


def test_where_nothing_was_cut_or_left_out_nothing_is_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = write(tmp_path / "test.jsonl", ["one", "two"])
    found = metrics_of(str(run.path), [f"data.test={test}"], output=str(tmp_path / "out"))
    assert not found.keys() & {"cut_rows", "rejected_rows"}
    assert not (tmp_path / "out/eval/test/rejects.jsonl").exists()
    assert "left out" not in capsys.readouterr().err


def test_predicting_says_what_was_cut_beside_the_answers(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lmkit.commands.predict.BATCH_ROWS", 2)
    predictor = Predictor(run.path)
    plain = predictor.predict(["one", "two", "one"])
    assert capsys.readouterr().err == ""
    answers = predictor.predict(["one", LONG, LONG])
    assert answers[0] == plain[0]
    assert [answer.keys() for answer in answers] == [plain[0].keys()] * 3
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"warning: texts: the end of 2 of 3 rows {HEAD}")
    file = tmp_path / "texts.txt"
    file.write_text(f"one\n{LONG}\n", encoding="utf-8")
    assert len(list(predictor.file(str(file)))) == 2
    assert capsys.readouterr().err == f"warning: {file}: the end of 1 of 2 rows {HEAD}"


def test_texts_that_are_read_in_windows_are_not_cut(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    Predictor(run.path, ["data.long_text=windows"]).predict([LONG])
    assert capsys.readouterr().err == ""
