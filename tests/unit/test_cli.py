"""Exit statuses, and which output carries what. What the commands do is tested where they live and in tests/e2e."""

from __future__ import annotations

import ast
import errno
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from safetensors import SafetensorError

from lmkit import cli, console
from lmkit.errors import DataError, LmkitError, TrainingStopped
from lmkit.train.signals import Interrupted


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """The command line in this process: (status, stdout, stderr)."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lmkit", *arguments])
        status = cli._status()
        return (status, *capsys.readouterr())

    yield command
    console.configure()


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], dict[str, Any]]:
    """Replace training by something that returns or raises; tells what it was called with."""

    def replace(result: Any) -> dict[str, Any]:
        called: dict[str, Any] = {}

        def replaced(name: str) -> Callable[..., Any]:
            def train(stage: str, source: str, overrides: Any, **flags: Any) -> Any:
                called.update(
                    function=name, stage=stage, source=source, overrides=list(overrides), **flags
                )
                if isinstance(result, BaseException):
                    raise result
                return result

            return train

        for name in ("train", "smoke", "dry_run"):
            monkeypatch.setattr(f"lmkit.commands.train.{name}", replaced(name))
        return called

    return replace


@dataclass(frozen=True)
class Summary:
    """A result of a command."""

    run: str = "runs/x"
    seconds: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return {"run": self.run, "seconds": self.seconds}

    def to_text(self) -> str:
        return "done"


SUMMARY = Summary()


def test_training_command_hands_on_what_it_was_given(run: Any, training: Any) -> None:
    arguments = ["finetune", "x.yaml", "train.epochs=3", "seed=1", "-o", "there", "--overwrite"]
    handed_on = {
        "stage": "finetune",
        "source": "x.yaml",
        "overrides": ["train.epochs=3", "seed=1"],
        "output": "there",
    }
    called = training(SUMMARY)
    assert run(*arguments)[0] == 0
    assert called == handed_on | {"function": "train", "resume": False, "overwrite": True}
    called.clear()
    assert run(*arguments, "--dry-run")[0] == 0
    assert called == handed_on | {"function": "dry_run"}
    assert run("finetune", "x.yaml", "--smoke")[0] == 0
    assert called["function"] == "smoke"


def test_flags_may_stand_before_the_arguments(run: Any, training: Any) -> None:
    called = training(SUMMARY)
    run("pretrain", "--resume", "-q", "x.yaml", "--json", "seed=1")
    assert (called["stage"], called["source"], called["overrides"], called["resume"]) == (
        "pretrain",
        "x.yaml",
        ["seed=1"],
        True,
    )


def test_json_prints_the_summary_and_nothing_else_on_stdout(run: Any, training: Any) -> None:
    training(SUMMARY)
    assert run("finetune", "x.yaml", "--json")[:2] == (0, '{"run": "runs/x", "seconds": 1.0}\n')


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            LmkitError("no good", place="here", remedy="do this"),
            2,
            "lmkit: here: no good\n  do this\n",
        ),
        (DataError("no good", place="a.csv:3"), 2, "lmkit: a.csv:3: no good\n"),
        (TrainingStopped("the loss is not finite"), 1, "lmkit: the loss is not finite\n"),
        (Interrupted(130), 130, "--resume"),
        (Interrupted(143), 143, "--resume"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x/log.jsonl"),
            1,
            "lmkit: runs/x/log.jsonl: No space left on device\n",
        ),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            1,
            "lmkit: output: I/O error: No space left",
        ),
    ],
)
def test_error_ends_with_its_status_and_one_message(
    run: Any, training: Any, error: Exception, status: int, said: str
) -> None:
    training(error)
    found, out, err = run("finetune", "x.yaml", "--json")
    assert (found, out) == (status, "")
    assert said in err
    assert "Traceback" not in err


def test_interruption_before_training_ends_with_130(run: Any, training: Any) -> None:
    training(KeyboardInterrupt())
    assert run("finetune", "x.yaml")[0] == 130


def test_mistake_of_lmkits_own_keeps_its_traceback(run: Any, training: Any) -> None:
    training(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("finetune", "x.yaml")


def test_other_trouble_with_files_keeps_its_traceback(run: Any, training: Any) -> None:
    training(FileNotFoundError(errno.ENOENT, "No such file", "x"))
    with pytest.raises(FileNotFoundError):
        run("finetune", "x.yaml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretain"], "No such command 'pretain'. Did you mean 'pretrain'?"),
        (["recipe", "chek"], "Did you mean 'check'"),
        (["finetune"], "Missing argument 'RECIPE'"),
        (["finetune", "x.yaml", "--resum"], "--resume"),
        (["eval", "x", "--smoke"], "No such option: --smoke"),
        (["finetune", "x.yaml", "-o"], "-o"),
        (
            ["finetune", "x.yaml", "--resume", "--overwrite"],
            "--resume and --overwrite contradict each other",
        ),
        (
            ["finetune", "x.yaml", "--smoke", "--dry-run"],
            "--smoke and --dry-run contradict each other",
        ),
        (["predict", "x", "text", "-f", "file"], "texts and --file were both given"),
        (["demo", "x"], "unexpected extra argument"),
    ],
)
def test_wrong_arguments_end_with_2_and_one_message(
    run: Any, arguments: list[str], said: str
) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("lmkit: ")
    assert said in err


@pytest.mark.parametrize("arguments", [["finetune"], ["recipe", "chek"], ["eval", "x", "--smoke"]])
def test_wrong_arguments_are_told_where_help_is(run: Any, arguments: list[str]) -> None:
    assert "--help" in run(*arguments)[2]


@pytest.mark.parametrize("arguments", [[], ["recipe"]])
def test_command_alone_shows_its_help(run: Any, arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert status == 2
    assert out.startswith("Usage: ")
    assert err == ""


def test_predict_without_anything_to_read_says_how(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    status, _, err = run("predict", "x")
    assert status == 2
    assert "nothing to predict on" in err


def test_version_is_printed(run: Any) -> None:
    from lmkit import __version__

    assert run("--version") == (0, f"lmkit {__version__}\n", "")


def test_reader_that_goes_away_ends_the_command_without_a_word() -> None:
    """``lmkit predict ... | head -1``: Python's own complaint at exit is avoided too."""
    import subprocess

    program = (
        "import sys; from lmkit import cli\n"
        "import lmkit.commands.recipes as r\n"
        "r.list_recipes = lambda: r.RecipeList((r.ShippedRecipe('x' * 70000, '', ''),) * 3)\n"
        "sys.argv = ['lmkit', 'recipe', 'list']; cli.main()"
    )
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")


OPTIONS = {
    "pretrain": "RECIPE KEY=VALUE -o --resume --overwrite --smoke --dry-run --json -q -v",
    "finetune": "RECIPE KEY=VALUE -o --resume --overwrite --smoke --dry-run --json -q -v",
    "eval": "RECIPE|RUN KEY=VALUE -o --json -q -v",
    "compare": "RUN_A RUN_B --metric --split --method --format --confidence --resamples --seed --json -q -v",
    "predict": "RUN TEXT --file --set -q -v",
    "doctor": "--json -q -v",
    "data": "RECIPE KEY=VALUE --json -q -v",
    "bench": "RECIPE KEY=VALUE --seconds --try --json -q -v",
    "demo": "-o --overwrite --json -q -v",
    "recipe list": "--json",
    "recipe show": "RECIPE --complete",
    "recipe copy": "RECIPE FILE",
    "recipe check": "RECIPE KEY=VALUE --json",
    "recipe explain": "KEY --json",
    "recipe schema": "",
}


@pytest.mark.parametrize("command", OPTIONS)
def test_options_of_a_command_are_those_of_the_contract(run: Any, command: str) -> None:
    """They are the surface that users and scripts depend on: one that goes needs an alias."""
    _, out, _ = run(*command.split(), "--help")
    assert [name for name in OPTIONS[command].split() if name not in out] == []


def test_bodies_of_commands_are_short() -> None:
    """The command line parses; what is done stands in lmkit/commands."""
    for command in [*cli.app.registered_commands, *cli.recipes.registered_commands]:
        assert command.callback is not None
        (function,) = ast.parse(inspect.getsource(command.callback)).body
        assert isinstance(function, ast.FunctionDef)
        assert function.end_lineno is not None
        lines = function.end_lineno - function.body[0].lineno + 1
        assert lines < 26, command.callback.__name__
