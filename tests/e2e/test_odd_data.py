"""Data as people have it: other scripts, odd labels, other columns, compressed, with bad rows. All of it trains, evaluates and predicts."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
task: classification
model: {preset: bert-nano}
tokenizer: {train: {algorithm: bpe, vocab_size: 300}}
data: {max_length: 32}
train: {max_steps: 1, batch_size: 64}
hardware: {precision: fp32}
eval: {resamples: 10}
"""
NAMES = ("a", "b")


def rows(
    labels: tuple[Any, Any] = NAMES,
    texts: tuple[str, str] = ("good", "bad"),
    columns: tuple[str, str] = ("text", "label"),
) -> str:
    """JSON lines of few rows: fewer than a batch holds."""
    return "".join(
        json.dumps(
            {columns[0]: f"{texts[i % 2]} {i}", columns[1]: labels[i % 2]}, ensure_ascii=False
        )
        + "\n"
        for i in range(12)
    )


TABLE = "".join(f'"good, {i}",a\r\n"bad\nday {i}",b\r\n' for i in range(6))
CASES: dict[str, tuple[str, bytes, list[str], set[str]]] = {
    "labels that look like paths": ("x.jsonl", rows(("../../up", "a/b\nc\td")).encode(), [], {"../../up", "a/b\nc\td"}),
    "whole numbers as labels": ("x.jsonl", rows((1, 3)).encode(), [], {"1", "3"}),
    "truth values as labels": ("x.jsonl", rows((True, False)).encode(), [], {"true", "false"}),
    "Chinese, Arabic and emoji": ("x.jsonl", rows(("正面", "سلبي"), ("很好 😀", "سيئ جدا 👎🏽")).encode(), [], {"正面", "سلبي"}),
    "columns of other names": ("x.jsonl", rows(columns=("sentence", "category")).encode(), [], set(NAMES)),
    "columns that are named": ("x.jsonl", rows(columns=("headline", "topic")).encode(), ["data.columns={text: headline, label: topic}"], set(NAMES)),
    "a table with byte order mark, CRLF and quotes": ("x.csv", b"\xef\xbb\xbftext,label\r\n" + TABLE.encode(), [], set(NAMES)),
    "a table without a header": ("x.tsv", "".join(f"good {i}\ta\nbad {i}\tb\n" for i in range(6)).encode(), ["data.columns={text: 0, label: 1}"], set(NAMES)),
    "compressed": ("x.jsonl.gz", gzip.compress(rows().encode()), [], set(NAMES)),
    "a very long text": ("x.jsonl", (rows() + json.dumps({"text": "word " * 20000, "label": "a"}) + "\n").encode(), [], set(NAMES)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_odd_data_trains_evaluates_and_predicts(case: str, tmp_path: Path, command: Any) -> None:
    name, content, options, labels = CASES[case]
    (tmp_path / "odd recipe.yaml").write_text(RECIPE)
    (tmp_path / name).write_bytes(content)
    trained = command(
        "finetune",
        "odd recipe.yaml",
        f"data.train={name}",
        f"data.test={name}",
        *options,
        "--json",
        cwd=tmp_path,
    )
    assert trained.status == 0, trained.err
    assert trained.json["run"] == "runs/odd recipe"
    evaluated = command("eval", "runs/odd recipe", "--json", cwd=tmp_path)
    assert evaluated.status == 0, evaluated.err
    assert set(evaluated.json["by_label"]) == labels
    predicted = command("predict", "runs/odd recipe", "-f", name, cwd=tmp_path)
    assert predicted.status == 0, predicted.err
    assert len(predicted.lines) == evaluated.json["examples"]
    assert {answer["prediction"] for answer in predicted.lines} <= labels
    assert {path.name for path in tmp_path.iterdir()} == {"odd recipe.yaml", name, "runs"}


def test_bad_rows_that_are_skipped_are_counted_and_kept(tmp_path: Path, command: Any) -> None:
    (tmp_path / "odd.yaml").write_text(RECIPE)
    bad = '{"text": null, "label": "a"}\n{"text": "x"}\n{broken\n{"text": 3, "label": "b"}\n'
    (tmp_path / "x.jsonl").write_text(rows() + bad)
    refused = command("finetune", "odd.yaml", "data.train=x.jsonl", cwd=tmp_path)
    assert (refused.status, refused.err.split(": ")[1]) == (2, "x.jsonl:13")
    ended = command(
        "finetune", "odd.yaml", "data.train=x.jsonl", "data.on_bad_row=skip", cwd=tmp_path
    )
    assert ended.status == 0
    assert "data.train: 4 rows left out, the first at x.jsonl:13: 'text' is null" in ended.err
    rejects = [
        json.loads(line) for line in (tmp_path / "runs/odd/rejects.jsonl").read_text().splitlines()
    ]
    assert [(entry["split"], entry["place"]) for entry in rejects] == [
        ("train", f"x.jsonl:{line}") for line in (13, 14, 15, 16)
    ]
    assert rejects[2]["row"] == "{broken"
    manifest = json.loads((tmp_path / "runs/odd/manifest.json").read_text())
    assert (manifest["rejected_rows"], manifest["examples"]["train"]) == (4, 12)


def test_words_of_a_text_file_and_of_a_tagged_file_are_tagged(tmp_path: Path, command: Any) -> None:
    (tmp_path / "ner.yaml").write_text(RECIPE.replace("classification", "ner"))
    sentence = "Ada B-PER\nLovelace I-PER\nlived O\nin O\n{} B-LOC\n\n"
    (tmp_path / "x.conll").write_text(
        "".join(sentence.format(city) for city in ("London", "巴黎", "القاهرة"))
    )
    (tmp_path / "x.txt").write_text("Ada lived in London.\n")
    (tmp_path / "x.en").write_text("\nAda lived in London.\n")  # one of two parallel files
    assert command("finetune", "ner.yaml", "data.train=x.conll", "-q", cwd=tmp_path).status == 0
    for arguments, words in (
        (["-f", "x.txt"], "Ada lived in London ."),
        (["-f", "x.en"], "Ada lived in London ."),
        (["-f", "x.conll"], "Ada Lovelace lived in London"),
        (["Ada 巴黎"], "Ada 巴 黎"),  # raw text does not say where Chinese words end
    ):
        (first, *_) = command("predict", "runs/ner", *arguments, cwd=tmp_path).lines
        assert first["tokens"] == words.split()
        assert len(first["tags"]) == len(first["tokens"])
        assert [first["text"][entity["start"] : entity["end"]] for entity in first["entities"]] == [
            e["text"] for e in first["entities"]
        ]
    said = command("predict", "runs/ner", "-f", "x.en", cwd=tmp_path).err
    assert said == "warning: x.en: blank lines get no answer (1 here)\n"


MISTAKES = {
    "eval runs/odd task=ner": "this model was trained for classification, not for ner",
    "eval runs/odd model.base=runs/other": "model.base: has no effect on a run that is trained",
    "eval runs/odd train.epochs=3": "train.epochs: has no effect on a run that is trained",
    "eval runs/odd data.tset=x": "did you mean data.test?",
    "eval runs/odd data.test=bad.jsonl": "bad.jsonl:1: the label 'c' does not occur in training; known: a, b",
    "eval runs/odd -o x.jsonl": "the output is a file",
    "predict runs/odd -f nope.txt": "--file: no such file: nope.txt",
    "predict runs/odd -f topics.jsonl": "--set data.columns={text: COLUMN}",
    "predict runs/odd --set eval.level=1 text": "eval.level: unknown key",
    "predict runs/odd x <empty>": "text 2: empty text",
    "predict runs/odd": "stdin: no line came",
    "predict runs/od text": "did you mean runs/odd?",
    "finetune odd.yaml -o new model={base: runs/odd} tokenizer.train=null data.max_length=999": "data.max_length: 999 tokens, but this model reads",
}


def test_mistakes_with_a_trained_run_are_answered_with_2(tmp_path: Path, command: Any) -> None:
    (tmp_path / "odd.yaml").write_text(RECIPE)
    (tmp_path / "x.jsonl").write_text(rows())
    (tmp_path / "bad.jsonl").write_text('{"text": "x", "label": "c"}\n')
    (tmp_path / "topics.jsonl").write_text('{"headline": "x", "topic": "c"}\n')
    assert (
        command(
            "finetune", "odd.yaml", "data.train=x.jsonl", "data.test=x.jsonl", "-q", cwd=tmp_path
        ).status
        == 0
    )
    for line, said in MISTAKES.items():
        arguments = [
            "" if part == "<empty>" else part for part in re.findall(r"(?:[^\s{]|\{[^}]*\})+", line)
        ]
        extra = ["data.train=x.jsonl"] if arguments[0] == "finetune" else []
        ended = command(*arguments, *extra, cwd=tmp_path)
        assert (line, ended.status, "Traceback" in ended.err) == (line, 2, False)
        assert said in ended.err, line


@pytest.mark.parametrize(
    "wrong",
    ["hardware.precision=fp16", "logging.to=[nothing]", "model.config={num_attention_heads: 3}"],
)
def test_recipe_error_leaves_no_half_begun_run_behind(
    wrong: str, tmp_path: Path, command: Any
) -> None:
    (tmp_path / "odd.yaml").write_text(RECIPE)
    (tmp_path / "x.jsonl").write_text(rows())
    assert command("finetune", "odd.yaml", "data.train=x.jsonl", wrong, cwd=tmp_path).status == 2
    assert command("finetune", "odd.yaml", "data.train=x.jsonl", "-q", cwd=tmp_path).status == 0


def test_masking_that_hides_nothing_in_a_few_texts_does_not_end_the_run(
    tmp_path: Path, command: Any
) -> None:
    (tmp_path / "odd.yaml").write_text(
        RECIPE.replace("classification", "mlm").replace("bpe", "wordpiece")
    )
    (tmp_path / "x.jsonl").write_text(rows())
    ended = command(
        "pretrain", "odd.yaml", "data.train=x.jsonl", "masking.share=0.001", "-q", cwd=tmp_path
    )
    assert (ended.status, ended.err) == (0, "")
