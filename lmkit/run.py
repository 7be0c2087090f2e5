"""The run directory: its paths, atomic writes, manifest and log."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import yaml

from lmkit.console import STARTED_AS
from lmkit.errors import RunError

REMOVED = ".removed"  # ends the name of a folder while it is removed
# of a line of log.jsonl: all that may differ where a run is repeated
TIMES = ("seconds", "tokens_per_second", "data_wait")
# they decide what is computed
LIBRARIES = (
    "lmkit",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "peft",
    "evaluate",
    "numpy",
    "flash-attn",
    "liger-kernel",
    "triton",
)
ELSEWHERE = "give another -o/--output"


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a fresh folder to fill, which becomes ``target`` when the block ends well: whole or absent.

    Every file is on the disk (fsync) before the rename. An existing target is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for path in [*aside.rglob("*"), aside]:
        sync(path)
    if target.exists():
        _replace(target, aside)
    else:
        os.rename(aside, target)
    sync(target.parent)


def _replace(target: Path, aside: Path) -> None:
    """Put a folder in the place of another, which is removed afterwards."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    os.rename(target, old)
    os.rename(aside, target)
    shutil.rmtree(old)


def sync(path: Path) -> None:
    """Write a file, or the names in a folder, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write_rejects(path: Path, rejected: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows that were left out, a line each; no file where there are none."""
    if rejected:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected))


class Run:
    """A directory with everything about one execution (contract: "Run directory")."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.manifest_file = self.path / "manifest.json"
        self.log_file = self.path / "log.jsonl"
        self.rejects_file = self.path / "rejects.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.card_file = self.path / "README.md"

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def is_finished(self) -> bool:
        return (self.manifest_file.is_file() and (self.model / "config.json").is_file()) or (
            self.model / "adapter_config.json"
        ).is_file()

    @property
    def manifest(self) -> dict[str, Any]:
        """The content of manifest.json."""
        return read_json(self.manifest_file)

    def eval_folder(self, split: str) -> Path:
        """Return the folder of an evaluation."""
        return self.path / "eval" / split

    def metrics(self, split: str) -> dict[str, Any]:
        """Return the metrics of a split, as ``lmkit eval`` left them."""
        return read_json(self.eval_folder(split) / "metrics.json")

    def check_start(self, *, resume: bool, overwrite: bool) -> None:
        """Check that a training command may use the directory; changes nothing.

        Raises:
            RunError: it is there, not empty, and neither flag was given; or it is no run of lmkit's.
        """
        self.check_place()
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not (resume or overwrite):
            raise self._is_not_empty()
        if not self.recipe_file.is_file():
            raise self._is_no_run(overwrite)

    def check_place(self) -> None:
        """Raise a RunError where the directory is none and cannot be made, or cannot be written to."""
        folders = (self.path, *self.path.absolute().parents)
        existing = next(path for path in folders if os.path.lexists(path))
        if not existing.is_dir():
            name = "the output" if existing == self.path else existing
            raise self._error(f"{name} is a file, not a directory")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise self._error(f"no permission to write in {existing}")

    def _error(self, problem: str, remedy: str = ELSEWHERE) -> RunError:
        return RunError(problem, place=str(self.path), remedy=remedy)

    def _is_not_empty(self) -> RunError:
        return self._error(
            "the output directory is not empty",
            "add --resume to go on from its newest checkpoint, --overwrite to start anew, or -o DIR for another place",
        )

    def _is_no_run(self, overwrite: bool) -> RunError:
        refusal = "--resume only goes on with a run of lmkit's"
        if overwrite:
            refusal = "--overwrite only replaces a run of lmkit's"
        return self._error(
            f"{refusal}, and here is no recipe.yaml", f"{ELSEWHERE}, or empty it yourself"
        )

    def start(self, *, resume: bool, overwrite: bool) -> None:
        """Claim the directory for a training command; see ``check_start``. It may be a link to a directory."""
        self.check_start(resume=resume, overwrite=overwrite)
        if resume or overwrite:
            self._clear(all_of_it=overwrite)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._error(f"the output directory cannot be made: {error.strerror}") from None

    def _clear(self, *, all_of_it: bool) -> None:
        """Remove what a killed removal left, and with ``all_of_it`` all that the directory holds.

        A process that is killed meanwhile leaves something that ``--resume`` and ``--overwrite`` understand: folders go whole,
        the checkpoints first, and the recipe last.
        """
        for folder in self.path.glob(f".*{REMOVED}"):
            shutil.rmtree(folder)
        if not all_of_it or not self.path.is_dir():
            return
        entries = sorted(self.path.iterdir())
        entries.sort(key=lambda path: (path != self.checkpoints, path == self.recipe_file))
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry.rename(entry.with_name(f".{entry.name}{REMOVED}")))
            else:
                entry.unlink()

    def stored_recipe(self) -> dict[str, Any]:
        """Return the content of recipe.yaml."""
        recipe: dict[str, Any] = yaml.safe_load(self.recipe_file.read_text(encoding="utf-8"))
        return recipe

    def append_log(self, line: dict[str, Any]) -> None:
        """Write a line to the end of log.jsonl."""
        with self.log_file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def log_lines(self) -> list[dict[str, Any]]:
        """Return all lines of log.jsonl; none where there is no such file."""
        if not self.log_file.is_file():
            return []
        lines = self.log_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def cut_log(self, step: int, evaluated: int) -> None:
        """Drop the lines after ``step``, evaluations after ``evaluated``, and a half-written line: they will be written again."""
        if self.log_file.is_file():
            _cut(self.log_file, step, evaluated)


def _cut(path: Path, step: int, evaluated: int) -> None:
    """Cut a log; see ``Run.cut_log``.

    Only the lines that go are read, from the end, so a long log costs no more than a short one. The others are not written
    anew, so that a process which is killed here loses none of them.
    """
    with path.open("r+b", buffering=0) as log:
        end = log.seek(0, os.SEEK_END)
        for start, line in _lines_from_the_end(log):
            if _is_until(step, evaluated, line):
                break
            end = start
        log.truncate(end)
        if end and not line.endswith(b"\n"):  # all of the line was written but its end
            log.seek(end)
            log.write(b"\n")


def _is_until(step: int, evaluated: int, line: bytes) -> bool:
    """Tell if a line of the log is whole, and of this step or one before; an evaluation, of ``evaluated`` or before."""
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return bool(entry["step"] <= (step if "loss" in entry else evaluated))


def _lines_from_the_end(file: FileIO, block: int = 8192) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file, the last one first, each with the byte at which it begins; ``block`` bytes are read at once."""
    rest, at = b"", file.seek(0, os.SEEK_END)
    while at > 0:
        end, at = at, file.seek(max(0, at - block))
        content = file.read(end - at) + rest
        end = at + len(content)
        head, newline, whole = content.partition(b"\n") if at else (b"", b"", content)
        rest = head + newline  # its beginning is in the block before
        for line in reversed(re.findall(rb"[^\n]*\n|[^\n]+", whole)):
            end -= len(line)
            yield end, line


def is_run(path: str | Path) -> bool:
    """Tell if a directory is a run of lmkit's."""
    return (Path(path) / "recipe.yaml").is_file()


def versions() -> dict[str, str]:
    """Return the versions of Python, lmkit and the libraries that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    installed = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def git_commit() -> str | None:
    """Return the commit of the folder the command was started in, with ``+`` where files are changed."""
    import subprocess

    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def command_line() -> list[str]:
    """Return what the user typed: the arguments of the first process, where lmkit started several."""
    if started_as := os.environ.get(STARTED_AS):
        arguments: list[str] = json.loads(started_as)
        return arguments
    name = Path(sys.argv[0]).name
    return ["lmkit" if name == "__main__.py" else name, *sys.argv[1:]]
