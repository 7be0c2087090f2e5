"""What goes where: people read stderr under --json, -q leaves warnings, and the first process alone speaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lmkit import console


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    console.configure()


def everything() -> None:
    console.say("said")
    console.warn("warned")
    console.fail("failed")
    console.emit(Result({"a": "é"}))


Outputs = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Result:
    """A command's result."""

    values: dict[str, str]

    def to_json(self) -> dict[str, str]:
        return self.values


def test_people_read_stdout_and_mistakes_go_to_stderr(capsys: Outputs) -> None:
    console.configure()
    everything()
    assert capsys.readouterr() == ("said\n", "warning: warned\nlmkit: failed\n")


def test_json_has_stdout_for_itself(capsys: Outputs) -> None:
    console.configure(as_json=True)
    everything()
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": "é"}
    assert out == '{"a": "é"}\n'
    assert err == "said\nwarning: warned\nlmkit: failed\n"


def test_quiet_leaves_warnings_and_errors(capsys: Outputs) -> None:
    console.configure(quiet=True)
    everything()
    assert capsys.readouterr() == ("", "warning: warned\nlmkit: failed\n")
    assert console.is_quiet()


def test_quiet_json_still_prints_its_object(capsys: Outputs) -> None:
    console.configure(as_json=True, quiet=True)
    everything()
    assert capsys.readouterr() == ('{"a": "é"}\n', "warning: warned\nlmkit: failed\n")


def test_other_processes_say_nothing_but_their_errors(
    capsys: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    console.configure(as_json=True)
    everything()
    assert capsys.readouterr() == ("", "lmkit: failed\n")
    assert not console.is_first_process()


def test_process_that_lmkit_started_leaves_the_json_object_to_its_parent(
    capsys: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(console.STARTED_AS, '["lmkit"]')
    console.configure(as_json=True)
    everything()
    assert capsys.readouterr() == ("", "said\nwarning: warned\nlmkit: failed\n")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["f1", 0.5], ["accuracy", 10]], "metric    value\nf1          0.5\naccuracy     10"),
        ([["f1", "-"]], "metric  value\nf1          -"),
        ([["很好", 1], ["é", 22]], "metric  value\n很好        1\né          22"),
        ([], "metric  value"),
    ],
)
def test_table_is_aligned_for_wide_letters_too(rows: list[list[Any]], expected: str) -> None:
    assert console.table(["metric", "value"], rows) == expected


def test_progress_hands_on_everything_and_shows_nothing_without_a_terminal(capsys: Outputs) -> None:
    assert list(console.progress_bar([1, 2], total=2, what="counting")) == [1, 2]
    assert capsys.readouterr() == ("", "")
