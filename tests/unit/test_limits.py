"""Limits that keep the package readable: short functions, few arguments, small files, no circles, no switches on tasks.

What breaks a limit today stands in a list. The lists may only shrink: a name that no longer breaks its limit is removed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import style

SOURCES = style.read_sources()

LONG_FUNCTIONS: set[str] = set()
MANY_ARGUMENTS: set[str] = set()
LONG_FILES: set[str] = set()
IN_CIRCLES: set[str] = set()
SWITCHES: set[str] = set()

# the demo's own recipes, which are named like the tasks
DEMO = {"commands/demo.py"}


def check(broken: Sequence[str], listed: set[str], limit: str) -> None:
    """Compare what breaks a limit with the list of what is known to break it."""
    new, mended = sorted(set(broken) - listed), sorted(listed - set(broken))
    assert not new, f"{limit}: {new}"
    assert not mended, f"mended, so remove it from the list in tests/unit/test_limits.py: {mended}"


def test_functions_have_at_most_80_lines() -> None:
    long = [function.place for function in style.too_long(SOURCES, most=80)]
    check(long, LONG_FUNCTIONS, "over 80 lines")


def test_functions_have_at_most_6_arguments() -> None:
    many = [function.place for function in style.with_many_arguments(SOURCES, most=6)]
    check(many, MANY_ARGUMENTS, "over 6 arguments")


def test_files_have_at_most_400_lines_of_code() -> None:
    long = [source.name for source in SOURCES if len(source.code_lines) > 400]
    check(long, LONG_FILES, "over 400 lines of code")


# --- circles ---


def modules() -> dict[str, style.Source]:
    """Return the files by the name they are imported by."""
    names = {}
    for source in SOURCES:
        name = ".".join(("lmkit", *Path(source.name).with_suffix("").parts))
        names[name.removesuffix(".__init__")] = source
    del names["lmkit"]  # whoever imports a part of it imports this, too
    return names


def imports_of(node: ast.AST) -> Iterator[str]:
    """Yield all that is imported, in functions too, but for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        else:
            yield from imports_of(child)


def import_graph() -> dict[str, set[str]]:
    """Return the files that each file imports, itself left out."""
    files = modules()
    graph = {}
    for name, source in files.items():
        targets = set()
        for target in imports_of(source.tree):
            # a name of a module, or a module of a package
            targets |= {target} & files.keys() or {target.rpartition(".")[0]} & files.keys()
        graph[name] = targets - {name}
    return graph


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return all that a file imports, and what that imports in turn."""
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(graph[name])
    return seen


def test_files_import_one_another_in_no_circle() -> None:
    graph = import_graph()
    circular = [name for name in graph if name in reachable(graph, name)]
    check(circular, IN_CIRCLES, "in a circle of imports")


# --- switches ---


@cache
def task_names() -> set[str]:
    return {path.parent.name for path in style.PACKAGE.glob("tasks/*/task.py")}


@cache
def answer_kinds() -> set[str]:
    """Return the kinds of answers, and those of classification."""
    tree = ast.parse((style.PACKAGE / "tasks" / "answers.py").read_text(encoding="utf-8"))
    kinds = {"single_label", "multi_label", "regression"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "kind":
            kinds |= set(strings_in(node.value))
    return kinds


def strings_in(node: ast.AST | None) -> Iterator[str]:
    """Yield a string, or those of a tuple, list or set."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        for element in node.elts:
            yield from strings_in(element)


def names_for(node: ast.AST) -> set[str]:
    """Return the names that an expression must not be compared with outside tasks.

    ``recipe.task`` and ``task.name`` are tasks, ``facts["kind"]`` is a kind of answer; a field's kind is that of a column.
    """
    text = ast.unparse(node)
    if text.endswith(("task", "name", "['task']", "get('task')")):
        return task_names()
    if text.endswith(("kind", "['kind']", "get('kind')")) and not text.startswith("field."):
        return answer_kinds()
    return set()


def switches_in(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield comparisons with a task or a kind, matches on it, and tables with several tasks."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            strings = {string for side in sides for string in strings_in(side)}
            if any(strings & names_for(side) for side in sides):
                yield node
        elif isinstance(node, ast.Match):
            patterns = [part for case in node.cases for part in ast.walk(case.pattern)]
            values = [part.value for part in patterns if isinstance(part, ast.MatchValue)]
            if {string for value in values for string in strings_in(value)} & names_for(
                node.subject
            ):
                yield node
        elif isinstance(node, ast.Dict):
            keys = {string for key in node.keys for string in strings_in(key)}
            if len(keys & task_names()) > 1:
                yield node


def test_nothing_outside_tasks_switches_on_a_task_or_a_kind_of_answer() -> None:
    places = []
    for source in SOURCES:
        if source.name.startswith("tasks/") or source.name in DEMO:
            continue
        for node in switches_in(source.tree):
            around = [
                function.name
                for function in source.functions
                if function.node.lineno <= node.lineno <= (function.node.end_lineno or 0)
            ]
            places.append(f"{source.name}:{around[-1] if around else ''}")
    check(places, SWITCHES, "switches on a task's name or a kind of answer")


@pytest.mark.parametrize(
    "code",
    [
        "recipe.task == 'ner'",
        "if task.name in ('clm', 'mlm'): pass",
        "x = {'ner': 1, 'clm': 2}[task]",
        "match kind:\n    case 'regression': pass",
        "facts.get('kind') != 'multi_label'",
    ],
)
def test_switches_are_seen(code: str) -> None:
    assert list(switches_in(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["field.kind == 'label'", "section in ('ner', 'lora')", "name == 'label'"]
)
def test_other_comparisons_are_none(code: str) -> None:
    assert not list(switches_in(ast.parse(code)))


# --- types at the doors ---

# JSON-ready answers, which users index and dump
ANSWERS = {
    "commands/predict.py:predict",
    "commands/predict.py:Predictor.predict",
    "commands/predict.py:Predictor.answers",
    "commands/predict.py:Predictor.file",
}
DOORS = ("__init__.py", "preflight.py", "subject.py", "commands/", "evaluation/", "flow/")


def test_doors_hand_over_typed_values() -> None:
    """A dictionary of strings to anything is what a JSON form is; everything else has a class."""
    untyped = []
    for source in SOURCES:
        if not source.name.startswith(DOORS):
            continue
        for function in source.functions:
            *classes, name = function.name.split(".")
            is_inner = any(part[0].islower() for part in classes)
            is_private = any(part.startswith("_") for part in (*classes, name))
            if is_inner or is_private or name in ("to_json", "from_json"):
                continue
            arguments = [*function.node.args.args, *function.node.args.kwonlyargs]
            annotations = [argument.annotation for argument in arguments]
            if "dict[str, Any]" in " ".join(
                ast.unparse(node) for node in (*annotations, function.node.returns) if node
            ):
                untyped.append(function.place)
    check(untyped, ANSWERS, "dict[str, Any] in a public signature")
