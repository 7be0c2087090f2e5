"""Imports only go down: cli, commands, train, evaluation, fast, data and models, tasks, metrics and recipe, errors.

Each third-party library has one home, and none that is heavy is imported before it is wanted.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

import lmkit

PACKAGE = Path(lmkit.__file__).parent


@dataclass(frozen=True)
class Import:
    """``module`` imports ``target``; ``early``: as soon as it is itself imported."""

    module: str
    target: str
    early: bool


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"))


def imports_of(module: str, tree: ast.AST, *, early: bool = True) -> Iterator[Import]:
    """All imports but those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        ):
            continue
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, early) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            if node.module == "lmkit":  # from lmkit import console
                yield from (
                    Import(module, f"lmkit.{alias.name}".removesuffix(".__version__"), early)
                    for alias in node.names
                )
            else:
                yield Import(module, node.module or "", early)
        yield from imports_of(
            module,
            node,
            early=early and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)),
        )


IMPORTS = [found for module, tree in modules() for found in imports_of(module, tree)]
INNER = [found for found in IMPORTS if found.target.split(".")[0] == "lmkit"]
OUTER = [
    found
    for found in IMPORTS
    if found.target.split(".")[0] not in {"lmkit", "__future__", *sys.stdlib_module_names}
]

# room -> what it may import besides itself
GROUND = {"errors", "console"}
BELOW_TASKS = {*GROUND, "batch", "heads", "recipe", "records", "run", "metrics"}
BELOW_TRAIN = {*BELOW_TASKS, "startup", "tasks", "data", "models", "fast", "evaluation"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "console": set(),
    "startup": GROUND,
    "batch": set(),
    "heads": set(),
    "recipe": {*GROUND, "tasks.registry"},
    "run": GROUND,
    "metrics": {*GROUND, "records"},
    "records": set(),
    "tasks": BELOW_TASKS,
    "data": {*BELOW_TASKS, "tasks"},
    "models": {*BELOW_TASKS, "startup", "tasks"},
    "fast": {*BELOW_TASKS, "tasks", "data", "models"},
    "evaluation": {*BELOW_TASKS, "tasks", "data", "models", "fast"},
    "train": BELOW_TRAIN,
    "subject": BELOW_TRAIN,
    "preflight": {*BELOW_TRAIN, "train"},
    "flow": {*BELOW_TRAIN, "train", "subject", "preflight"},
    "commands": {*BELOW_TRAIN, "train", "subject", "preflight", "flow"},
    "cli": {*GROUND, "commands"},
    "__init__": {"commands", "flow", "recipe", "run", "subject"},
    "__main__": {"cli"},
}
# imports that still go up; each goes when its room is rebuilt
EXCEPTIONS: set[tuple[str, str]] = set()


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_has_its_place() -> None:
    assert {room(module) for module, _ in modules()} == ROOMS.keys()


@pytest.mark.parametrize("name", ROOMS)
def test_imports_only_go_down(name: str) -> None:
    allowed = ROOMS[name]
    wrong = []
    for found in INNER:
        target = found.target.removeprefix("lmkit").lstrip(".")
        if (
            room(found.module) != name
            or not target
            or room(target) == name
            or (found.module, target) in EXCEPTIONS
        ):
            continue
        if not any(target == each or target.startswith(f"{each}.") for each in allowed):
            wrong.append(f"{found.module} imports {target}")
    assert wrong == []


def test_commands_call_no_other_commands() -> None:
    calls = [
        f"{found.module} imports {found.target}"
        for found in INNER
        if room(found.module) == "commands"
        and found.target.startswith("lmkit.commands")
        and found.target != f"lmkit.{found.module}"
    ]
    # a module that is run imports itself by its name, so that what was pickled is found
    assert calls == []


def test_exceptions_are_still_needed() -> None:
    assert {(found.module, found.target.removeprefix("lmkit.")) for found in INNER} >= EXCEPTIONS


def test_tasks_import_neither_training_nor_data_nor_evaluation() -> None:
    assert not {"train", "data", "evaluation", "commands"} & {*ROOMS["tasks"], *ROOMS["models"]}


# library -> the modules that may import it as soon as they are imported
EARLY = {
    "typer": ["cli"],
    "yaml": ["recipe.*", "run"],
    "msgspec": ["recipe.*"],
    "numpy": [
        "tasks.translation.baselines",
        "data.*",
        "metrics.*",
        "evaluation.*",
        "train.batches",
        "train.setup",
    ],
    "pyarrow": ["data.*"],
    "jinja2": ["evaluation.report.render"],
    "markupsafe": ["evaluation.report.render"],
    "filelock": ["data.*", "train.prepare"],
    "datasets": ["metrics.modules.*"],  # loaded by the evaluate library alone
    "evaluate": ["metrics.modules.*"],
    # imported by train.fit, train.device and commands.proof alone, when torch is wanted
    "torch": [
        "train.loop",
        "train.averages",
        "train.measured",
        "train.combined",
        "train.batches",
        "train.parallelism.*",
        "train.setup",
        "fast.attention",
        "fast.dropout",
        "fast.flash",
        "fast.flash_proof",
        "fast.liger",
        "fast.linear_cross_entropy",
    ],
    "transformers": ["fast.attention", "fast.flash"],
}


def test_libraries_are_imported_early_only_where_they_live() -> None:
    wrong = []
    for found in OUTER:
        library = found.target.split(".")[0]
        if found.early and not any(fnmatch(found.module, home) for home in EARLY.get(library, [])):
            wrong.append(f"{found.module} imports {library} at module level")
    assert wrong == []


# library -> the rooms that may import it at all
HOMES = {
    "msgspec": {"recipe"},
    "typer": {"cli"},
    "datasets": {"data", "metrics"},  # features of the modules of the evaluate library
    "pyarrow": {"data"},
    "accelerate": {"train"},
    "peft": {"models"},
    "tokenizers": {"models", "train"},
    "safetensors": {"train", "models"},
    "huggingface_hub": {"models"},
    "sacrebleu": {"metrics"},
    "jinja2": {"evaluation"},
    "markupsafe": {"evaluation"},
    "scipy": {"metrics"},
    "sklearn": {"tasks"},
    "evaluate": {"metrics"},
    "tqdm": {"console"},
}


@pytest.mark.parametrize("library", HOMES)
def test_library_has_one_home(library: str) -> None:
    users = {room(found.module) for found in OUTER if found.target.split(".")[0] == library}
    assert users <= HOMES[library]


@pytest.mark.parametrize("library", ["seqeval", "pandas", "click", "requests", "pydantic"])
def test_library_that_is_no_dependency_is_not_imported(library: str) -> None:
    assert [found.module for found in OUTER if found.target.split(".")[0] == library] == []


def test_only_the_console_and_the_command_line_print() -> None:
    printing = {
        module
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }
    assert printing == {"console"}


def test_commands_neither_exit_nor_read_arguments() -> None:
    for module, tree in modules():
        if room(module) == "commands":
            functions = [
                node for node in tree.body if not isinstance(node, ast.If)
            ]  # a module that is run reads its own arguments
            names = {
                ast.unparse(node)
                for each in functions
                for node in ast.walk(each)
                if isinstance(node, ast.Attribute)
            }
            assert not names & {"sys.exit", "sys.argv", "os._exit"}, module
