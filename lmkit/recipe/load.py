"""From a YAML file, a shipped name or a mapping, with KEY=VALUE on top, to a checked Recipe."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import reduce
from pathlib import Path
from typing import Any

from lmkit import console
from lmkit.errors import RecipeError, nearest, suggest
from lmkit.recipe.convert import Mistake, convert_section
from lmkit.recipe.foreign import FOREIGN, FOREIGN_TASKS
from lmkit.recipe.schema import Recipe
from lmkit.recipe.section import Section, keys_of
from lmkit.recipe.yaml_text import dump_yaml, parse_yaml

SUFFIXES = (".yaml", ".yml")
# keys that older recipes give to tasks that do not read them: a warning, not an error
TOLERATED = ("data.labels", "data.long_text", "data.overlap")


def recipe_folder() -> Path:
    """Where the shipped recipes lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that ships with lmkit; ``finetune/ner`` for finetune/ner.yaml."""
    root = recipe_folder()
    found = {
        str(path.relative_to(root).with_suffix("")): path for path in sorted(root.rglob("*.yaml"))
    }
    return {
        name.replace("\\", "/"): path
        for name, path in found.items()
        if not name.startswith("accelerate")
    }


def find_recipe(name: str) -> Path:
    """The file behind a path or a shipped name (``finetune/ner``, or ``ner`` where only one ends so).

    Raises:
        RecipeError: neither a file nor a shipped recipe; suggests the nearest of either.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.suffix in SUFFIXES:
        here = (
            [str(found) for found in path.parent.glob("*") if found.suffix in SUFFIXES]
            if path.parent.is_dir()
            else []
        )
        raise RecipeError(
            f"no such file: {name}",
            remedy=suggest(name, here) if here else "lmkit recipe list shows the recipes that ship",
        )
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    ending = [found for found in shipped if found.split("/")[-1] == name]
    if len(ending) == 1:
        return shipped[ending[0]]
    if ending:
        raise RecipeError(
            f"{name!r} is the end of several recipes", remedy=f"say which: {', '.join(ending)}"
        )
    raise RecipeError(
        f"no recipe {name!r}: neither a file nor one that ships with lmkit",
        remedy=suggest(name, shipped),
    )


def load_recipe(
    source: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str] = ()
) -> Recipe:
    """Read, override and check a recipe.

    Args:
        source: a YAML file, the name of a shipped recipe, a mapping, or a Recipe.
        overrides: ``KEY=VALUE`` strings with dotted keys and YAML values; they win over the source.

    Returns:
        The recipe with ``name`` and ``output`` filled in. Relative paths of a file that do not
        exist from here but do from the file's folder are rewritten to the latter.

    Raises:
        RecipeError: names every unknown key and wrong value at once, with the nearest valid name.
    """
    values: dict[str, Any]
    if isinstance(source, Recipe):
        values, place, stem = source.model_dump(), "recipe", source.name
    elif isinstance(source, Mapping):
        values, place, stem = _plain(source), "recipe", "run"
    else:
        path = find_recipe(str(source))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot be read: {error}", place=str(path)) from None
        loaded = parse_yaml(text, str(path))
        if not isinstance(loaded, dict):
            found = "empty" if loaded is None else f"a {type(loaded).__name__}"
            raise RecipeError(
                f"a recipe is a mapping of keys to values, this is {found}", place=str(path)
            )
        values, place, stem = loaded, str(path), path.stem
        _anchor(values, path.parent)
    given = [_apply(values, override) for override in overrides]
    recipe = _validate(values, place, given)
    task = _check_task(recipe, place) if recipe.task else ""
    name = recipe.name or stem
    if not re.fullmatch(r"[\w][\w.\- ]*", name):
        raise RecipeError(
            f"{name!r} cannot be the name of a folder",
            place=f"{place}: name",
            remedy="use letters, digits, '-', '_' and '.'",
        )
    if unknown := re.search(r"\{(?!name\})[^{}]*\}", recipe.output):
        raise RecipeError(
            f"unknown {unknown[0]}",
            place=f"{place}: output",
            remedy="only {name} stands for something here",
        )
    output = str(Path(recipe.output.replace("{name}", name)).expanduser())
    return recipe.model_copy(update={"name": name, "task": task, "output": output})


def _check_task(recipe: Recipe, place: str) -> str:
    """Refuse an unknown task, and keys that the task does not read; return its real name."""
    from lmkit.tasks.registry import names, problem, readers_of, real_name

    if real_name(recipe.task) is None:
        task = recipe.task
        name_here = FOREIGN_TASKS.get(task.lower().replace("_", "-"))
        remedy = f"here it is {name_here}" if name_here else suggest(task, names())
        raise RecipeError(f"unknown task {task!r}", place=f"{place}: task", remedy=remedy)
    solved = problem(recipe.task)
    task = solved.name
    for key in known_keys():
        readers = readers_of(key)
        if not readers or task in readers or _value(recipe, key) == _value(Recipe(), key):
            continue
        if key not in TOLERATED:
            raise RecipeError(
                f"has no effect on {task}",
                place=key,
                remedy=f"leave it out: it is for {', '.join(readers)}",
            )
        console.warn(f"{key} has no effect on {task}: it is for {', '.join(readers)}")
    return task


def _value(recipe: Recipe, dotted: str) -> Any:
    return reduce(getattr, dotted.split("."), recipe)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every value, defaults included, and local paths made absolute."""
    values = recipe.model_dump()
    for section, key in PATH_KEYS:
        if holder := _holder(values, section):
            holder[key] = _each(
                holder.get(key),
                lambda entry: os.path.realpath(_home(entry)) if _is_local(entry) else entry,
            )
    return dump_yaml(values)


# where a recipe names things on disk
PATH_KEYS = [(("data",), key) for key in ("train", "validation", "test")] + [
    (("tokenizer", "train"), "files"),
    (("tokenizer",), "base"),
    (("model",), "base"),
    (("eval",), "metrics"),
]


def local_paths(recipe: Recipe) -> list[tuple[str, str]]:
    """The files and folders that a recipe names and that are there, each with its dotted key."""
    found: list[tuple[str, str]] = []
    values = recipe.model_dump()
    for section, key in PATH_KEYS:
        dotted = ".".join([*section, key])
        _each(
            (_holder(values, section) or {}).get(key),
            lambda entry, at=dotted: found.append((at, entry)),
        )
    return [(key, _home(entry)) for key, entry in found if _is_local(entry)]


def _holder(values: Mapping[str, Any], section: tuple[str, ...]) -> dict[str, Any] | None:
    found: Any = values
    for key in section:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, list):
        return [_each(entry, change) for entry in value]
    if isinstance(value, dict):
        return {role: _each(entry, change) for role, entry in value.items()}
    return change(value) if isinstance(value, str) else value


def _is_local(entry: str) -> bool:
    return bool(entry) and (os.path.exists(_home(entry)) or bool(glob.glob(entry, recursive=True)))


def _home(entry: str) -> str:
    """With ``~`` replaced; of an unknown user it stays, where ``Path.expanduser`` would raise."""
    return os.path.expanduser(entry)


def _anchor(values: dict[str, Any], folder: Path) -> None:
    def from_folder(entry: str) -> str:
        beside = str(folder / entry)
        return (
            beside
            if not Path(entry).is_absolute() and not _is_local(entry) and _is_local(beside)
            else entry
        )

    for section, key in PATH_KEYS:
        if holder := _holder(values, section):
            holder[key] = _each(holder.get(key), from_folder)
            if holder[key] is None:
                del holder[key]


def _plain(value: Any) -> Any:
    """Plain values of what a Python caller has: numbers and texts of NumPy, views and sets."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, Set)):
        return [_plain(entry) for entry in value]
    if isinstance(value, str):
        return str.__str__(value)
    return value.item() if getattr(value, "shape", None) == () else value


def _apply(values: dict[str, Any], override: str) -> str:
    """Set one key from KEY=VALUE in place; returns the key."""
    key, equals, text = override.partition("=")
    key = key.strip()
    parts = key.split(".")
    if not equals or not all(parts):
        raise RecipeError(
            f"{override!r} is not KEY=VALUE", remedy="for example train.learning_rate=3e-4"
        )
    holder = values
    for part in parts[:-1]:
        if not isinstance(holder.get(part), dict):
            holder[part] = {}
        holder = holder[part]
    # a glob is text: YAML's aliases (*name) have nothing to refer to in a single value
    holder[parts[-1]] = text if text.lstrip().startswith("*") else parse_yaml(text, key)
    return key


def _validate(values: Mapping[str, Any], place: str, given: Sequence[str] = ()) -> Recipe:
    """The checked recipe; what is wrong is said of the file, unless it was ``given`` as KEY=VALUE."""
    mistakes: list[Mistake] = []
    recipe = convert_section(Recipe, values, mistakes)
    if recipe is not None:
        return recipe
    lines = [_explain(mistake) for mistake in mistakes]
    keys = [".".join(mistake.path) for mistake in mistakes]
    from_file = any(not any(f"{key}.".startswith(f"{name}.") for name in given) for key in keys)
    raise RecipeError("\n  ".join(lines), place=place if from_file else None)


def _section(path: Sequence[str]) -> type[Section]:
    """The innermost section of the schema on a path."""
    section: type[Section] = Recipe
    for name in path:
        key = keys_of(section).get(name)
        if key is None or key.section is None:
            break
        section = key.section
    return section


def known_keys(section: type[Section] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key a recipe may have."""
    keys = []
    for name, key in keys_of(section).items():
        keys.append(prefix + name)
        if key.section is not None:
            keys += known_keys(key.section, f"{prefix}{name}.")
    return keys


EXAMPLES = {
    "model": " such as {base: runs/mlm}",
    "data": " such as {train: train.jsonl}",
    "tokenizer": " such as {base: runs/mlm}",
    "lora": " such as {rank: 16}",
}


def _explain(mistake: Mistake) -> str:
    """The dotted key, and what to say of it."""
    key = ".".join(mistake.path)
    if mistake.expected is None:
        return f"{key}: {explain_unknown(mistake.path)}"
    return f"{key}: expected {mistake.expected}{EXAMPLES.get(key, '')}, found {mistake.value!r}"


def explain_unknown(path: Sequence[str]) -> str:
    """What to say of a key that is not known: its name here, or the nearest ones."""
    name, dotted, siblings = path[-1], ".".join(path), keys_of(_section(path[:-1]))
    if name in FOREIGN and dotted != FOREIGN[name]:
        return f"unknown key; here it is {FOREIGN[name]}"
    everywhere = known_keys()
    same_name = [key for key in everywhere if key.split(".")[-1] == name]
    if same_name:
        return f"unknown key; did you mean {' or '.join(same_name)}?"
    if close := nearest(name, siblings):
        alike = [
            key for key in siblings if key.rstrip("s") == close.rstrip("s")
        ]  # seed and seeds, fold and folds
        return f"unknown key; did you mean {' or '.join('.'.join([*path[:-1], key]) for key in alike)}?"
    if elsewhere := nearest(name, [key.split(".")[-1] for key in everywhere]):
        places = [key for key in everywhere if key.split(".")[-1] == elsewhere]
        return f"unknown key; did you mean {' or '.join(places)}?"
    return f"unknown key; known here: {', '.join(siblings)}"
