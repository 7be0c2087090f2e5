"""The real command line, in a process of its own or (cheaper, where torch is loaded already) in this one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

GOOD, BAD = (
    ["good", "great", "lovely", "nice", "fine", "happy"],
    ["bad", "awful", "poor", "sad", "ugly", "mean"],
)
OTHERS = ["😀 très bien", "很好 喜歡", "مرحبا بالعالم", 'said "so", twice', "tab\tin it"]


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit status and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must be one JSON object and nothing else."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Ended]


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start the command line in a process (and a process group) of its own; an env value of None unsets."""

    def run(
        *arguments: str, cwd: Path, env: Mapping[str, str | None] = {}
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "lmkit", *arguments],
            cwd=cwd,
            env={key: value for key, value in {**os.environ, **env}.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    return run


@pytest.fixture(scope="session")
def process(start: Callable[..., subprocess.Popen[str]]) -> Command:
    """Run the command line in a process of its own."""

    def run(
        *arguments: str, cwd: Path, stdin: str = "", env: Mapping[str, str | None] = {}
    ) -> Ended:
        running = start(*arguments, cwd=cwd, env=env)
        out, err = running.communicate(stdin, timeout=600)
        return Ended(running.returncode, out, err)

    return run


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Run the command line in this process: the same code, without the seconds that starting torch takes."""
    from lmkit import cli, console

    def run(*arguments: str, cwd: Path, stdin: str = "") -> Ended:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["lmkit", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capfd.readouterr()
        status = cli._status()
        return Ended(status, *capfd.readouterr())

    yield run
    console.configure()


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def opinions(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Rows for classification whose label is easily learned, some in other scripts."""
    rows = []
    for i in range(first, first + count):
        words = (GOOD, BAD)[i % 2]
        text = " ".join(words[(i * step) % len(words)] for step in (1, 2, 3, 5)) + f" {i}"
        rows.append(
            {
                "text": text + (f" {OTHERS[i % 5]}" if i % 7 == 0 else ""),
                "label": ("pos", "neg")[i % 2],
            }
        )
    return rows


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: raw text, labelled rows, and a recipe for each of the two stages."""
    folder = tmp_path_factory.mktemp("project")
    sentences = [
        f"the {ship} sailed {i} days and saw a whale"
        for i in range(60)
        for ship in ("ship", "boat")
    ]
    (folder / "raw.txt").write_text(
        "\n".join([*sentences, *OTHERS, *(row["text"] for row in opinions(40))]) + "\n",
        encoding="utf-8",
    )
    write_jsonl(folder / "train.jsonl", opinions(80))
    write_jsonl(folder / "validation.jsonl", opinions(20, first=80))
    write_jsonl(folder / "test.jsonl", opinions(21, first=100))
    (folder / "language.yaml").write_text(
        """
task: mlm
model: {preset: bert-nano}
tokenizer: {train: {algorithm: wordpiece, vocab_size: 300, lowercase: true}}
data: {train: raw.txt, validation_fraction: 0.2, max_length: 32}
train: {max_steps: 6, batch_size: 8, learning_rate: 1e-3, eval_every: 3}
hardware: {precision: fp32}
eval: {resamples: 50}
logging: {every: 2}
"""
    )
    (folder / "opinion.yaml").write_text(
        """
name: opinions
task: classification
model: {base: runs/language}
tokenizer:   # the model's own
data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl, max_length: 32}
train: {max_steps: 6, batch_size: 8, learning_rate: 1e-3, eval_every: 3}
hardware: {precision: fp32}
eval: {resamples: 50}
logging: {every: 2}
"""
    )
    return folder
