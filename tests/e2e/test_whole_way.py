"""From raw text to predictions with the real command line, a process a step, and the network blocked throughout."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

BLOCK = """
import socket
def _blocked(*arguments, **named):
    with open({log!r}, "a") as log:
        log.write(repr(arguments) + "\\n")
    raise OSError("the network is blocked")
def _guarded(original):
    def connect(self, address):
        return original(self, address) if self.family == socket.AF_UNIX else _blocked(address)
    return connect
socket.socket.connect = _guarded(socket.socket.connect)
socket.socket.connect_ex = _guarded(socket.socket.connect_ex)
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = _blocked
"""


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose sitecustomize raises at every connection, and notes it in ``attempts``."""
    folder = tmp_path_factory.mktemp("blocked")
    (folder / "sitecustomize.py").write_text(BLOCK.format(log=str(folder / "attempts")))
    return folder


@pytest.fixture(scope="module")
def way(project: Path, blocked: Path, process: Any) -> dict[str, Any]:
    """The four commands, one after the other; the hub is not switched off, it is just not there."""
    env = {
        "PYTHONPATH": os.pathsep.join([str(blocked), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": None,
    }
    texts = "a good day\nun día triste 😢\n很好\n"
    return {
        "pretrain": process("pretrain", "language.yaml", "--json", cwd=project, env=env),
        "finetune": process("finetune", "opinion.yaml", "--json", cwd=project, env=env),
        "eval": process("eval", "runs/opinions", "--json", cwd=project, env=env),
        "predict": process("predict", "runs/opinions", cwd=project, env=env, stdin=texts),
    }


def test_every_step_ends_well(way: dict[str, Any]) -> None:
    assert {
        name: (ended.status, ended.err if ended.status else "") for name, ended in way.items()
    } == dict.fromkeys(way, (0, ""))


def test_nothing_reaches_for_the_network(way: dict[str, Any], blocked: Path) -> None:
    assert not (blocked / "attempts").exists(), (blocked / "attempts").read_text()


def test_nothing_warns_but_of_what_is_doubtful_in_the_data(way: dict[str, Any]) -> None:
    doubts = (
        "warning: data.",
        "warning: labels that the model never predicts",
        "warning: gold that may be wrong",
    )
    lines = [
        line
        for ended in way.values()
        for line in ended.err.splitlines()
        if not line.startswith(doubts)
    ]
    assert [line for line in lines if "warning" in line.lower()] == []


def test_training_prints_one_json_object(way: dict[str, Any]) -> None:
    language, opinions = way["pretrain"].json, way["finetune"].json
    assert (language["run"], language["task"], language["steps"], language["selected_by"]) == (
        "runs/language",
        "mlm",
        6,
        "loss",
    )
    assert (opinions["run"], opinions["task"], opinions["selected_by"]) == (
        "runs/opinions",
        "classification",
        "f1_macro",
    )
    assert opinions["best_step"] in (3, 6)
    assert opinions["validation"]["metrics"].keys() == {"accuracy", "f1_macro", "mcc"}
    assert language["tokens"] > 0


@pytest.mark.parametrize("name", ["language", "opinions"])
def test_run_directory_is_laid_out_as_promised(
    way: dict[str, Any], project: Path, name: str
) -> None:
    run = project / "runs" / name
    assert {path.name for path in run.iterdir()} == {
        *("recipe.yaml", "manifest.json", "log.jsonl", "README.md"),
        *("checkpoints", "model", "eval"),
    }
    assert {path.name for path in (run / "model").iterdir()} == {
        *("config.json", "model.safetensors", "lmkit.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert not [
        path
        for path in run.rglob("*")
        if path.name.startswith(".") or path.suffix in (".bin", ".pt", ".pkl")
    ]
    assert "step-00000006" in {path.name for path in (run / "checkpoints").iterdir()}
    validation = {path.name for path in (run / "eval" / "validation").iterdir()}
    assert validation >= {"metrics.json", "predictions.jsonl"}


def test_manifest_says_what_was_done_with_what(way: dict[str, Any], project: Path) -> None:
    manifest = json.loads((project / "runs/opinions/manifest.json").read_text())
    assert manifest["command"] == ["lmkit", "finetune", "opinion.yaml", "--json"]
    assert manifest["parent"] == str(project / "runs/language")
    assert manifest["seed"] == 13
    assert manifest["versions"].keys() >= {"python", "lmkit", "torch", "transformers"}
    assert manifest["hardware"]["processes"] == 1
    assert manifest["hardware"]["precision"] == "fp32"
    assert manifest["parameters"]["trained"] == manifest["parameters"]["total"] > 0
    files = {entry["split"]: entry for entry in manifest["data"]}
    assert files["train"]["path"] == "train.jsonl"
    assert files["train"]["rows"] == 80
    assert (
        files["train"]["sha256"]
        == hashlib.sha256((project / "train.jsonl").read_bytes()).hexdigest()
    )
    assert manifest["tokenizer"]["sha256"]
    assert manifest["tokens_seen"] == way["finetune"].json["tokens"]
    assert manifest["seconds"] > 0
    assert manifest["peak_memory_bytes"] > 0
    assert "git_commit" in manifest


def test_log_has_a_line_per_logged_step(way: dict[str, Any], project: Path) -> None:
    lines = [
        json.loads(line) for line in (project / "runs/opinions/log.jsonl").read_text().splitlines()
    ]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [2, 4, 6]
    promised = {
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens",
        "tokens_per_second",
        "padding",
        "data_wait",
    }
    assert all(line.keys() >= promised for line in steps)
    assert [line["step"] for line in lines if "validation_f1_macro" in line] == [3, 6]


def test_eval_prints_what_it_writes(way: dict[str, Any], project: Path) -> None:
    printed = way["eval"].json
    assert printed == json.loads((project / "runs/opinions/eval/test/metrics.json").read_text())
    assert printed.keys() >= {
        "task",
        "split",
        "examples",
        "loss",
        "confidence",
        "metrics",
        "by_label",
        "signature",
        "seconds",
    }
    assert (printed["task"], printed["split"], printed["examples"]) == (
        "classification",
        "test",
        21,
    )
    for metric in printed["metrics"].values():
        assert metric.keys() == {"value", "low", "high"}
        assert metric["low"] <= metric["value"] <= metric["high"]
    assert {label: entry["support"] for label, entry in printed["by_label"].items()} == {
        "neg": 10,
        "pos": 11,
    }


def test_predictions_stand_in_the_order_of_the_file(way: dict[str, Any], project: Path) -> None:
    records = [
        json.loads(line)
        for line in (project / "runs/opinions/eval/test/predictions.jsonl").read_text().splitlines()
    ]
    rows = [json.loads(line) for line in (project / "test.jsonl").read_text().splitlines()]
    assert [(r["id"], r["text"], r["gold"]) for r in records] == [
        (i, row["text"], row["label"]) for i, row in enumerate(rows)
    ]
    right = sum(record["prediction"] == record["gold"] for record in records)
    assert way["eval"].json["metrics"]["accuracy"]["value"] == pytest.approx(right / 21)
    for record in records:
        assert sum(record["probabilities"].values()) == pytest.approx(1)
        assert record["score"] == record["probabilities"][record["prediction"]]


def test_lines_of_stdin_are_answered_in_order(way: dict[str, Any]) -> None:
    answers = way["predict"].lines
    assert [(answer["id"], answer["text"]) for answer in answers] == [
        (0, "a good day"),
        (1, "un día triste 😢"),
        (2, "很好"),
    ]
    assert all(
        answer.keys() == {"id", "text", "prediction", "score", "probabilities"}
        for answer in answers
    )


def test_texts_files_and_stdin_are_answered_alike(
    way: dict[str, Any], project: Path, command: Any
) -> None:
    texts = [answer["text"] for answer in way["predict"].lines]
    (project / "some.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (project / "some.csv").write_text("\n".join(["sentence", *texts]) + "\n", encoding="utf-8")
    given = [
        ("stdin", [], "\n".join(texts)),
        ("texts", texts, ""),
        ("text file", ["-f", "some.txt"], ""),
        ("csv", ["-f", "some.csv"], ""),
    ]
    for how, arguments, stdin in given:
        ended = command("predict", "runs/opinions", *arguments, cwd=project, stdin=stdin)
        assert ended.status == 0, how
        for answer, expected in zip(ended.lines, way["predict"].lines, strict=True):
            assert (answer["id"], answer["text"], answer["prediction"]) == (
                expected["id"],
                expected["text"],
                expected["prediction"],
            )
            assert answer["probabilities"] == pytest.approx(expected["probabilities"], rel=1e-5)


def test_recipe_of_a_run_repeats_it_bit_for_bit(
    way: dict[str, Any], project: Path, command: Any, tmp_path: Path
) -> None:
    ended = command(
        "finetune",
        str(project / "runs/opinions/recipe.yaml"),
        "-o",
        str(tmp_path / "again"),
        "--json",
        cwd=tmp_path,
    )
    assert ended.status == 0, ended.err
    weights = [
        run / "model/model.safetensors" for run in (project / "runs/opinions", tmp_path / "again")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_finished_run_is_neither_replaced_nor_mixed_up(
    way: dict[str, Any], project: Path, command: Any
) -> None:
    before = (project / "runs/opinions/manifest.json").read_bytes()
    ended = command("finetune", "opinion.yaml", "--json", cwd=project)
    assert (ended.status, ended.out) == (2, "")
    assert "runs/opinions: the output directory is not empty" in ended.err
    assert "--resume" in ended.err
    assert "--overwrite" in ended.err
    assert (project / "runs/opinions/manifest.json").read_bytes() == before


def test_overwrite_starts_anew(
    way: dict[str, Any], project: Path, command: Any, tmp_path: Path
) -> None:
    shutil.copytree(project / "runs/opinions", tmp_path / "run")
    (tmp_path / "run/old").write_text("of the run before")
    options = ["train.max_steps=1", "-o", str(tmp_path / "run")]
    assert (
        command("finetune", "opinion.yaml", *options, "--overwrite", "-q", cwd=project).status == 0
    )
    assert not (tmp_path / "run/old").exists()
    assert json.loads((tmp_path / "run/manifest.json").read_text())["steps"] == 1


def test_overwrite_removes_nothing_where_the_new_run_cannot_begin(
    way: dict[str, Any], project: Path, command: Any, tmp_path: Path
) -> None:
    shutil.copytree(project / "runs/language", tmp_path / "run")
    options = ["-o", str(tmp_path / "run"), "--overwrite", "-q"]
    ended = command(
        "pretrain", "language.yaml", *options, "model.config.hidden_size=33", cwd=project
    )
    assert ended.status == 2
    assert (tmp_path / "run/model/model.safetensors").is_file()
    data = tmp_path / "run/mine.txt"
    data.write_text("".join(f"the whale {number}\n" for number in range(99)))
    ended = command("pretrain", "language.yaml", *options, f"data.train={data}", cwd=project)
    assert (ended.status, data.is_file()) == (2, True)
    assert "data.train: lies in the run that --overwrite would remove" in ended.err


def test_python_api_does_the_same(
    way: dict[str, Any], project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import lmkit

    monkeypatch.chdir(project)
    run = lmkit.finetune({"task": "classification", "model": {"base": "runs/language"}, "output": str(tmp_path / "run"),
                          "data": {"train": "train.jsonl", "test": "test.jsonl", "max_length": 32}, "train": {"max_steps": 1}})  # fmt: skip
    assert lmkit.evaluate(run).metrics("test")["examples"] == 21
    (answer,) = lmkit.load(run).predict(["a good day"])
    assert answer["prediction"] in ("neg", "pos")
