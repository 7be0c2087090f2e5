"""The problems by name, from the entry points ``lmkit.tasks`` of lmkit and of any other package that is installed."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING

from lmkit import console
from lmkit.errors import RecipeError, suggest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from lmkit.tasks.base import Problem

GROUP = "lmkit.tasks"


def names() -> tuple[str, ...]:
    """Return the names of all problems; nothing is imported for it."""
    return tuple(sorted(_entries()))


def problem(name: str) -> Problem:
    """Return the problem that a name or an alias stands for; loading it imports no torch.

    Raises:
        RecipeError: no package has such a task, or the one that has it is broken.
    """
    if name in _entries():
        return _load(name)
    for other in problems():
        if name in other.aliases:
            return other
    raise RecipeError(f"unknown task {name!r}", place="task", remedy=suggest(name, names()))


@cache
def problems() -> tuple[Problem, ...]:
    """Return all problems; of a broken package only a warning."""
    loaded = []
    for name in names():
        try:
            loaded.append(_load(name))
        except RecipeError as error:
            console.warn(str(error))
    return tuple(loaded)


def real_name(name: str) -> str | None:
    """Return the name of the problem that a name or an alias stands for; None: there is none."""
    if name in _entries():
        return name
    return next((other.name for other in problems() if name in other.aliases), None)


def name_here(foreign: str) -> str | None:
    """Return the name of the problem that another tool gives this name; None: nobody knows it."""
    foreign = foreign.lower().replace("_", "-")
    return next((other.name for other in problems() if foreign in other.foreign_names), None)


def readers_of(key: str) -> tuple[str, ...]:
    """Return the names of the problems that read a key of the recipe which others do not; none: all read it."""
    return tuple(other.name for other in problems() if _reads(other, key))


def _reads(problem: Problem, key: str) -> bool:
    """Tell if a problem names a key; a section that it brought along is its own."""
    is_own = problem.section_type is not None and key.partition(".")[0] == problem.section
    return is_own or key in problem.keys


def headline(task: str, metrics: Collection[str]) -> str:
    """Return the metric that stands for all, wherever one is shown or compared.

    Args:
        metrics: those that there are, in order.
    """
    measures = problem(task).measures if real_name(task) is not None else ()
    names = (measure.name for measure in measures)
    return next((name for name in names if name in metrics), next(iter(metrics)))


@cache
def _entries() -> dict[str, list[EntryPoint]]:
    """Return the entry points by name.

    Raises:
        RecipeError: there is none, not even lmkit's own.
    """
    from importlib.metadata import entry_points

    by_name: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        by_name.setdefault(entry.name, []).append(entry)
    if not by_name:
        raise RecipeError(
            "no task is installed: lmkit runs from a folder, or was installed before it had entry points",
            place="task",
            remedy="pip install -e . in the folder of lmkit",
        )
    return by_name


@cache
def _load(name: str) -> Problem:
    from lmkit.tasks.base import Problem

    entry, *others = _entries()[name]
    if others:
        places = " and ".join(str(each.value) for each in (entry, *others))
        raise RecipeError(
            f"several packages have a task {name!r}: {places}",
            place="task",
            remedy="uninstall all but one of them",
        )
    try:
        loaded = entry.load()
    except Exception as error:  # whatever code of somebody else raises
        raise _broken(entry, f"{type(error).__name__}: {error}") from error
    if not isinstance(loaded, Problem):
        raise _broken(entry, f"{entry.value} is no lmkit.tasks.base.Problem")
    if loaded.name != name:
        raise _broken(entry, f"its problem has the name {loaded.name!r}")
    return loaded


def _broken(entry: EntryPoint, reason: str) -> RecipeError:
    package = entry.dist.name if entry.dist is not None else entry.module.partition(".")[0]
    return RecipeError(
        f"the task {entry.name!r} of the package {package} cannot be loaded: {reason}",
        place="task",
        remedy=f"update {package}, or uninstall it",
    )
