"""The run directory: its paths, atomic writes, manifest and log."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import yaml

from lmkit.console import STARTED_AS
from lmkit.errors import RunError

REMOVED = ".removed"  # ends the name of a folder while it is removed
# of a line of log.jsonl: all that may differ where a run is repeated
TIMES = ("seconds", "tokens_per_second", "data_wait")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Give a fresh folder to fill, which becomes ``target`` when the block ends well: whole or absent.

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
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        os.rename(target, old)
        os.rename(aside, target)
        shutil.rmtree(old)
    else:
        os.rename(aside, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk."""
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
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_rejects(path: Path, rejected: Sequence[Mapping[str, Any]]) -> None:
    """Keep the rows that were left out, a line each; no file where there are none."""
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
        manifest: dict[str, Any] = json.loads(self.manifest_file.read_text(encoding="utf-8"))
        return manifest

    def eval_folder(self, split: str) -> Path:
        return self.path / "eval" / split

    def metrics(self, split: str) -> dict[str, Any]:
        """Return the metrics of a split, as ``lmkit eval`` left them."""
        file = self.eval_folder(split) / "metrics.json"
        metrics: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return metrics

    def check_start(self, *, resume: bool, overwrite: bool) -> None:
        """Check that a training command may use the directory; change nothing.

        Raises:
            RunError: it is there, not empty, and neither flag was given; or it is no run of lmkit's.
        """
        self.check_place()
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not (resume or overwrite):
            raise RunError(
                "the output directory is not empty",
                place=str(self.path),
                remedy="add --resume to go on from its newest checkpoint, --overwrite to start anew, or -o DIR for another place",
            )
        if not self.recipe_file.is_file():
            problem = (
                "--overwrite only replaces a run of lmkit's"
                if overwrite
                else "--resume only goes on with a run of lmkit's"
            )
            raise RunError(
                f"{problem}, and here is no recipe.yaml",
                place=str(self.path),
                remedy="give another -o/--output, or empty it yourself",
            )

    def check_place(self) -> None:
        """Raise a RunError where the directory is none and cannot be made, or cannot be written to."""
        existing = next(
            path for path in (self.path, *self.path.absolute().parents) if os.path.lexists(path)
        )
        if not existing.is_dir():
            what = "the output is" if existing == self.path else f"{existing} is"
            raise RunError(
                f"{what} a file, not a directory",
                place=str(self.path),
                remedy="give another -o/--output",
            )
        if not os.access(existing, os.W_OK | os.X_OK):
            raise RunError(
                f"no permission to write in {existing}",
                place=str(self.path),
                remedy="give another -o/--output",
            )

    def start(self, *, resume: bool, overwrite: bool) -> None:
        """Claim the directory for a training command; see ``check_start``. The directory may be a link; what it holds goes.

        A process that is killed meanwhile leaves what ``--resume`` and ``--overwrite`` can work with: folders go whole, the
        checkpoints first, and the recipe last.
        """
        self.check_start(resume=resume, overwrite=overwrite)
        for rest in self.path.glob(f".*{REMOVED}"):
            shutil.rmtree(rest)
        entries = list(self.path.iterdir()) if overwrite and self.path.is_dir() else []
        entries.sort(key=lambda path: (path != self.checkpoints, path == self.recipe_file, path))
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry.rename(entry.with_name(f".{entry.name}{REMOVED}")))
            else:
                entry.unlink()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"the output directory cannot be made: {error.strerror}",
                place=str(self.path),
                remedy="give another -o/--output",
            ) from None

    def stored_recipe(self) -> dict[str, Any]:
        values: dict[str, Any] = yaml.safe_load(self.recipe_file.read_text(encoding="utf-8"))
        return values

    def append_log(self, line: dict[str, Any]) -> None:
        with self.log_file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def log_lines(self) -> list[dict[str, Any]]:
        if not self.log_file.is_file():
            return []
        return [json.loads(line) for line in self.log_file.read_text(encoding="utf-8").splitlines()]

    def cut_log(self, step: int, evaluated: int) -> None:
        """Drop lines that will be written again: after ``step``, evaluations after ``evaluated``, and a half-written line.

        Only these are read, from the end, so a long log costs no more than a short one. The others are not written anew,
        so a process that is killed here loses none of them.
        """
        if not self.log_file.is_file():
            return
        with self.log_file.open("r+b", buffering=0) as log:
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
        values = json.loads(line)
    except ValueError:
        return False
    return bool(values["step"] <= (step if "loss" in values else evaluated))


def _lines_from_the_end(file: FileIO, block: int = 8192) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file, the last one first, with the byte at which each begins; read in blocks of so many bytes."""
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
    """Return the versions of Python, lmkit and the libraries that decide what is computed."""
    from importlib.metadata import PackageNotFoundError, version

    installed = {"python": sys.version.split()[0]}
    libraries = (
        "lmkit",
        "torch",
        "transformers",
        "tokenizers",
        "datasets",
        "accelerate",
        "peft",
        "evaluate",
        "numpy",
    )
    for name in (*libraries, "flash-attn", "liger-kernel", "triton"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def git_commit() -> str | None:
    """Return the commit of the folder the command was started in, with ``+`` where files are changed."""
    import subprocess

    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def command_line() -> list[str]:
    """Return what the user typed, also in a process that lmkit started for it."""
    if started_as := os.environ.get(STARTED_AS):
        typed: list[str] = json.loads(started_as)
        return typed
    name = Path(sys.argv[0]).name
    return ["lmkit" if name == "__main__.py" else name, *sys.argv[1:]]
