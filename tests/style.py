"""Measure how the code reads, and how much of it a plain run goes through.

    python tests/style.py --table [FOLDER] [--prose README.md docs/*.md]
    python tests/style.py --plain-way

``--table`` prints the numbers that the house style sets aims for. ``--plain-way`` fine-tunes a classifier,
from the recipe to the metrics of its validation rows, on one process with ``hardware.fast: off``, and prints the files
and functions that ran, in the order of their first calls. What is made of the metrics afterwards (analysis, report,
model card) is counted apart. Its exit status is 1 where the way to the metrics comes to too many lines of code, or
where code that only makes a run faster or spreads it is among them.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lmkit"
MOST_LINES = 3500  # of code in the functions of the plain way
NOT_PLAIN = ("fast/", "train/parallelism/fsdp.py")
AFTERWARDS = (
    *(f"evaluation/{name}" for name in ("report/", "analysis", "calibration", "mistakes")),
    *(f"evaluation/{name}" for name in ("overlap", "slices", "suspicions")),
    "train/card.py",
)
ODD_OPENING = re.compile(r"(What|Whether|Which|How|Those|Where|Why|From|Of|That)\b")
NO_TOKENS = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.COMMENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Function:
    """A function or method: its name with those of the classes and functions around it, and its size."""

    file: str
    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef

    @property
    def place(self) -> str:
        return f"{self.file}:{self.name}"

    @property
    def length(self) -> int:
        """Lines from ``def`` to the end, all counted."""
        return (self.node.end_lineno or 0) - self.node.lineno + 1

    @property
    def num_arguments(self) -> int:
        arguments = self.node.args
        names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        return sum(name.arg not in ("self", "cls") for name in names)


class Source:
    """A file of Python."""

    def __init__(self, path: Path, root: Path):
        self.name = str(path.relative_to(root))
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)

    @cached_property
    def code_lines(self) -> set[int]:
        """Numbers of the lines that are neither blank nor in a docstring."""
        lines = enumerate(self.text.splitlines(), start=1)
        numbers = {number for number, line in lines if line.strip()}
        for node in ast.walk(self.tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
                docstring = node.body[0]
                numbers -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
        return numbers

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]:
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))

    @cached_property
    def functions(self) -> list[Function]:
        return list(self._functions_in(self.tree, ""))

    def _functions_in(self, node: ast.AST, prefix: str) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield Function(self.name, prefix + child.name, child)
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from self._functions_in(child, f"{prefix}{child.name}.")
            else:
                yield from self._functions_in(child, prefix)

    def lines_of(self, function: Function) -> set[int]:
        """Return the lines of code of a function, decorators among them."""
        node = function.node
        first = min([node.lineno, *(line.lineno for line in node.decorator_list)])
        return self.code_lines & set(range(first, (node.end_lineno or 0) + 1))


def read_sources(folder: Path = PACKAGE) -> list[Source]:
    """Read all files of a package; they are named from it."""
    return [Source(path, folder) for path in sorted(folder.rglob("*.py"))]


def too_long(sources: Sequence[Source], *, most: int) -> list[Function]:
    """Return the functions with more lines than ``most``."""
    functions = [function for source in sources for function in source.functions]
    return [function for function in functions if function.length > most]


def with_many_arguments(sources: Sequence[Source], *, most: int) -> list[Function]:
    """Return the functions with more arguments; not a command's options, nor what autograd calls."""
    functions = [
        function
        for source in sources
        for function in source.functions
        if source.name != "cli.py" and function.node.name != "forward"
    ]
    return [function for function in functions if function.num_arguments > most]


# --- the table ---


def table_of(sources: Sequence[Source]) -> dict[str, str]:
    """Return what the house style sets aims for, by name."""
    nodes = [node for source in sources for node in ast.walk(source.tree)]
    tokens = [token for source in sources for token in source.tokens]
    lines = sum(bool(line.strip()) for source in sources for line in source.text.splitlines())
    statements = sum(isinstance(node, ast.stmt) for node in nodes)
    comprehensions = sum(isinstance(node, COMPREHENSIONS) for node in nodes)
    conditionals = sum(isinstance(node, ast.IfExp) for node in nodes)
    any_types = sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
    comments = sum(token.type == tokenize.COMMENT for token in tokens)
    counted = sum(token.type not in NO_TOKENS for token in tokens)
    docstrings = [text for node in nodes if (text := docstring_of(node)) is not None]
    odd = sum(ODD_OPENING.match(text) is not None for text in docstrings)
    longest = max(
        (function for source in sources for function in source.functions),
        key=lambda function: function.length,
    )
    largest = max(sources, key=lambda source: len(source.code_lines))
    return {
        "lines that are not blank": f"{lines:,}",
        "tokens a line (6.5)": f"{counted / lines:.2f}",
        "comprehensions per 1,000 statements (40)": f"{1000 * comprehensions / statements:.1f}",
        "conditionals per 1,000 statements (25)": f"{1000 * conditionals / statements:.1f}",
        "comment lines (4-8 %)": f"{100 * comments / lines:.1f} %",
        "Any per 1,000 lines (12)": f"{1000 * any_types / lines:.1f}",
        "docstrings with an odd opening (0)": f"{100 * odd / len(docstrings):.1f} %",
        "longest function (80)": f"{longest.length}, {longest.place}",
        "functions over 80 lines (0)": str(len(too_long(sources, most=80))),
        "functions with over 6 arguments (0)": str(len(with_many_arguments(sources, most=6))),
        "longest file, lines of code (400)": f"{len(largest.code_lines)}, {largest.name}",
    }


def docstring_of(node: ast.AST) -> str | None:
    """Return the docstring of a class or function."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return ast.get_docstring(node)
    return None


def prose_table(paths: Sequence[Path]) -> dict[str, str]:
    """Return how the sentences of Markdown files read; tables, headings and code are left out."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"^\s*[|#<>!].*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "x", text)
    blocks = re.split(r"\n\s*\n|\n\s*[-*0-9.]+ ", text)
    parts = [part for block in blocks for part in re.split(r"(?<=[.!?])\s+", block)]
    lengths = [length for part in parts if (length := len(part.split())) > 2]
    over = sum(length > 30 for length in lengths)
    return {
        "words a sentence (15)": f"{sum(lengths) / len(lengths):.1f}",
        "sentences over 30 words (5 %)": f"{100 * over / len(lengths):.1f} %",
        "semicolons a sentence (0.05)": f"{text.count(';') / len(lengths):.3f}",
    }


# --- the plain way ---


class Trace:
    """The code of the package that runs while this is on, on all threads, in the order of the first calls."""

    def __init__(self) -> None:
        self.codes: dict[CodeType, None] = {}

    def __enter__(self) -> Trace:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            self.codes.setdefault(frame.f_code)

    def functions(self, sources: Sequence[Source]) -> list[Function]:
        """Return the functions that ran; comprehensions, lambdas and modules are none."""
        by_start = {}
        for source in sources:
            for function in source.functions:
                node = function.node
                for start in (node.lineno, *(line.lineno for line in node.decorator_list)):
                    by_start[str(PACKAGE / source.name), node.name, start] = function
        starts = [(code.co_filename, code.co_name, code.co_firstlineno) for code in self.codes]
        return list(dict.fromkeys(by_start[start] for start in starts if start in by_start))


def trace_plain_run(folder: Path) -> Trace:
    """Fine-tune a classifier by the real command, in this process; it evaluates its validation rows."""
    recipes = ROOT / "recipes" / "demo"
    small = ["data.max_rows=64", "train.batch_size=8", "train.max_steps=6", "train.epochs=null"]
    plain = ["hardware.precision=fp32", "hardware.processes=1", "hardware.fast=off"]
    base, run = str(folder / "base"), str(folder / "run")
    subprocess.run(
        [sys.executable, "-m", "lmkit", "pretrain", recipes / "mlm.yaml", "-o", base, *small],
        check=True,
        capture_output=True,
    )
    from lmkit import cli

    recipe = str(recipes / "classification.yaml")
    sys.argv = ["lmkit", "finetune", recipe, "-o", run, "-q", f"model.base={base}", *small, *plain]
    with Trace() as trace:
        status = cli._status()
    if status:
        sys.exit(f"{' '.join(sys.argv)} ended with exit status {status}")
    return trace


def print_plain_way() -> bool:
    """Print the files and functions of a plain run; return whether they keep to the limits."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory(prefix="plain-way-") as folder:
        os.environ["LMKIT_CACHE"] = f"{folder}/cache"
        os.environ["PYTHONPATH"] = str(ROOT)
        trace = trace_plain_run(Path(folder))
    sources = {source.name: source for source in read_sources()}
    functions = trace.functions(list(sources.values()))
    names, lines = defaultdict(list), defaultdict(set)
    for function in functions:
        names[function.file].append(function.name)
        lines[function.file] |= sources[function.file].lines_of(function)
    rooms: Counter[str] = Counter()
    for file in names:
        print(f"{len(lines[file]):5} {file}: {', '.join(names[file])}")
        room = "afterwards" if file.startswith(AFTERWARDS) else file.partition("/")[0]
        rooms[room] += len(lines[file])
    afterwards = rooms.pop("afterwards", 0)
    total, wrong = rooms.total(), [file for file in names if file.startswith(NOT_PLAIN)]
    print("\n" + ", ".join(f"{room} {count:,}" for room, count in rooms.most_common()))
    print(f"{total:,} lines of code from the recipe to the metrics (at most {MOST_LINES:,})")
    print(
        f"{afterwards:,} lines for analysis, report and model card, made of the metrics afterwards"
    )
    print(f"files that no plain run should go through: {', '.join(wrong) or 'none'}")
    return total <= MOST_LINES and not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--table", nargs="?", const=PACKAGE, type=Path, metavar="FOLDER")
    parser.add_argument("--prose", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--plain-way", action="store_true")
    options = parser.parse_args()
    table = table_of(read_sources(options.table)) if options.table else {}
    if options.prose:
        table |= prose_table(options.prose)
    for name, value in table.items():
        print(f"{name:45} {value}")
    if options.plain_way:
        sys.path.insert(0, str(ROOT))
        sys.exit(0 if print_plain_way() else 1)


if __name__ == "__main__":
    main()
