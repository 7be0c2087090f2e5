"""The run directory: who may claim it, what is written whole or not at all, and how its log is cut."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from lmkit.console import STARTED_AS
from lmkit.errors import RunError
from lmkit.run import (
    Run,
    _lines_from_the_end,
    atomic_directory,
    command_line,
    git_commit,
    is_run,
    versions,
    write_json,
    write_text,
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that was begun."""
    found = Run(tmp_path / "run")
    write_text(found.recipe_file, "task: mlm\n")
    (found.path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    return found


# ------------------------------------------------------------------ claiming


def test_new_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    Run(tmp_path / "a/b/c").start(resume=False, overwrite=False)
    assert (tmp_path / "a/b/c").is_dir()


def test_empty_directory_is_taken(tmp_path: Path) -> None:
    Run(tmp_path).start(resume=False, overwrite=False)


def test_directory_with_something_in_it_is_refused_and_both_flags_are_named(run: Run) -> None:
    with pytest.raises(
        RunError, match=r"run: the output directory is not empty\n.*--resume.*--overwrite.*-o"
    ):
        run.start(resume=False, overwrite=False)


def test_resume_leaves_the_run_as_it_is(run: Run) -> None:
    run.start(resume=True, overwrite=False)
    assert run.recipe_file.is_file()


def test_overwrite_empties_the_run(run: Run) -> None:
    run.start(resume=False, overwrite=True)
    assert list(run.path.iterdir()) == []


def test_whenever_removing_a_run_is_broken_off_it_is_a_run_without_checkpoints(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (run.checkpoints, run.model):
        folder.mkdir()
        (folder / "part").touch()
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(
            shutil, "rmtree", lambda _: seen.append({path.name for path in run.path.iterdir()})
        )
        run.start(resume=False, overwrite=True)
    assert [
        ("recipe.yaml" in names, "checkpoints" in names, "model" in names) for names in seen
    ] == [
        (True, False, True),
        (True, False, False),
    ]


def test_what_was_left_of_an_old_run_is_removed(run: Run) -> None:
    (run.path / ".model.removed").mkdir()
    run.start(resume=True, overwrite=False)
    assert not (run.path / ".model.removed").exists()


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_directory_that_is_no_run_is_left_alone(tmp_path: Path, flag: str) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"recipe\.yaml"):
        Run(tmp_path).start(resume=flag == "resume", overwrite=flag == "overwrite")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_check_changes_nothing(run: Run, tmp_path: Path) -> None:
    run.check_start(resume=False, overwrite=True)
    assert run.recipe_file.is_file()
    Run(tmp_path / "new").check_start(resume=False, overwrite=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("below", ["", "/deeper/still"])
def test_file_is_no_place_for_a_run(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file, not a directory"):
        Run(f"{tmp_path}/file{below}").start(resume=False, overwrite=False)


def test_broken_link_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(RunError):
        Run(tmp_path / "link").start(resume=False, overwrite=False)


def test_place_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(RunError, match="no permission to write in"):
        Run(tmp_path / "run").check_place()


def test_a_run_behind_a_link_is_replaced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run.path)
    Run(tmp_path / "link").start(resume=False, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert list(run.path.iterdir()) == []


def test_run_is_known_by_its_recipe(run: Run, tmp_path: Path) -> None:
    assert is_run(run.path)
    assert not is_run(tmp_path)


# ------------------------------------------------------------------ writing


def test_directory_appears_whole(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
        assert not (tmp_path / "model").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model/config.json").read_text() == "{}"


def test_every_file_is_on_the_disk_before_the_directory_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a rename that survives a power cut would have empty files in it."""
    done: list[int | str] = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda file: sync(file) or done.append(os.fstat(file).st_ino))
    monkeypatch.setattr(os, "rename", lambda *paths: rename(*paths) or done.append("renamed"))
    with atomic_directory(tmp_path / "model") as folder:
        (folder / "deep").mkdir()
        (folder / "deep/config.json").write_text("{}")
    at = done.index("renamed")
    assert {
        path.stat().st_ino for path in (tmp_path / "model", *(tmp_path / "model").rglob("*"))
    } <= set(done[:at])
    assert tmp_path.stat().st_ino in done[at:]


def test_directory_does_not_appear_where_the_block_fails(tmp_path: Path) -> None:
    def begin() -> None:
        with atomic_directory(tmp_path / "model") as folder:
            (folder / "config.json").write_text("{")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert list(tmp_path.iterdir()) == []


def test_directory_that_is_there_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/old").write_text("")
    with pytest.raises(ValueError, match="halfway"), atomic_directory(tmp_path / "model") as folder:
        raise ValueError("halfway")
    assert (tmp_path / "model/old").exists()
    with atomic_directory(tmp_path / "model") as folder:
        (folder / "new").write_text("")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_file_is_written_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a/manifest.json", {"name": "é"})
    assert json.loads((tmp_path / "a/manifest.json").read_text(encoding="utf-8")) == {"name": "é"}
    assert len(list((tmp_path / "a").iterdir())) == 1


# ------------------------------------------------------------------ log


def test_log_is_cut_after_the_step_that_is_gone_on_from(run: Run) -> None:
    run.cut_log(2, 2)
    assert run.log_lines() == [{"step": 1}, {"step": 2}]
    run.append_log({"step": 3, "loss": 1.5})
    assert run.log_lines()[-1] == {"step": 3, "loss": 1.5}


def test_an_evaluation_that_the_checkpoint_does_not_know_of_is_cut_too(run: Run) -> None:
    """It is made again, as one that came after a signal is when the run goes on."""
    run.log_file.write_text("")
    for line in ({"step": 2, "loss": 1.0}, {"step": 2, "validation_loss": 1.0}):
        run.append_log(line)
    run.cut_log(2, 2)
    assert len(run.log_lines()) == 2
    run.cut_log(2, 0)
    assert run.log_lines() == [{"step": 2, "loss": 1.0}]


def test_half_written_last_line_is_dropped(run: Run) -> None:
    run.cut_log(10, 10)
    assert [line["step"] for line in run.log_lines()] == [1, 2, 3]


def test_last_line_that_only_lacks_its_end_is_kept(run: Run) -> None:
    run.log_file.write_text('{"step": 1}\n{"step": 2}')
    run.cut_log(2, 2)
    run.append_log({"step": 3})
    assert [line["step"] for line in run.log_lines()] == [1, 2, 3]


def test_log_of_which_nothing_stays_is_empty(run: Run) -> None:
    run.cut_log(0, 0)
    assert run.log_file.read_bytes() == b""


def test_cutting_reads_no_more_of_a_log_than_is_dropped(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on costs the same at step 100 and at step 100,000."""
    read = []

    class Counting(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            read.append(len(found))
            return found

    lines = [f'{{"step": {step}}}\n' for step in range(1, 20_001)]
    run.log_file.write_text("".join(lines))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, **_: Counting(path, mode))
        run.cut_log(19_000, 19_000)
    assert run.log_file.read_text() == "".join(lines[:19_000])
    assert 0 < sum(read) < len("".join(lines[19_000:])) + 2 * 8192


@pytest.mark.parametrize("block", [1, 2, 7, 100])
@pytest.mark.parametrize("content", ["", "\n", "a", "a\n", "ab\n\nc", "\n\nlong enough\nä\n"])
def test_lines_from_the_end_are_the_lines_however_they_are_read(
    tmp_path: Path, content: str, block: int
) -> None:
    (tmp_path / "file").write_text(content)
    with (tmp_path / "file").open("rb", buffering=0) as file:
        found = list(_lines_from_the_end(file, block))[::-1]
    assert [line for _, line in found] == content.encode().splitlines(keepends=True)
    assert (
        b"".join(content.encode()[start : start + len(line)] for start, line in found)
        == content.encode()
    )


def test_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    Run(tmp_path).cut_log(3, 3)
    assert Run(tmp_path).log_lines() == []


# ------------------------------------------------------------------ what a run says of itself


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/usr/bin/lmkit", "finetune", "x"], ["lmkit", "finetune", "x"]),
        (["/lib/lmkit/__main__.py", "eval", "x"], ["lmkit", "eval", "x"]),
        (["my_script.py", "3"], ["my_script.py", "3"]),
    ],
)
def test_command_line_is_what_the_user_typed(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], expected: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line() == expected


def test_command_line_of_a_process_that_lmkit_started_is_that_of_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(STARTED_AS, '["lmkit", "finetune", "mine.yaml"]')
    assert command_line() == ["lmkit", "finetune", "mine.yaml"]


def test_versions_name_what_decides_the_numbers() -> None:
    assert versions().keys() >= {
        "python",
        "lmkit",
        "torch",
        "transformers",
        "tokenizers",
        "accelerate",
    }


def test_commit_is_none_outside_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None
