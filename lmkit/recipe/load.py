"""Load recipes: from a YAML file, a shipped name or a mapping, with KEY=VALUE on top, to a checked Recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.errors import RecipeError, suggest
from lmkit.recipe.convert import Mistake, convert_section
from lmkit.recipe.further import recipe_type
from lmkit.recipe.keys import explain_unknown, known_keys
from lmkit.recipe.paths import anchor_paths, make_absolute
from lmkit.recipe.schema import Recipe
from lmkit.recipe.shipped import find_recipe
from lmkit.recipe.yaml_text import dump_yaml, parse_yaml

if TYPE_CHECKING:
    from lmkit.tasks.base import Problem

# keys that older recipes give to tasks that do not read them: a warning, not an error
TOLERATED = ("data.labels", "data.long_text", "data.overlap")


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
    values, place, stem = _read(source)
    given = [_apply(values, override) for override in overrides]
    recipe = _validate(values, place, given)
    task = _check_task(recipe, place) if recipe.task else ""
    if recipe.hardware.fast == "off":
        _check_fast(recipe)
    name = recipe.name or stem
    if not re.fullmatch(r"[\w][\w.\- ]*", name):
        raise _no_folder_name(name, place)
    if unknown := re.search(r"\{(?!name\})[^{}]*\}", recipe.output):
        raise _unknown_placeholder(unknown[0], place)
    output = str(Path(recipe.output.replace("{name}", name)).expanduser())
    return recipe.model_copy(update={"name": name, "task": task, "output": output})


def _no_folder_name(name: str, place: str) -> RecipeError:
    return RecipeError(
        f"{name!r} cannot be the name of a folder",
        place=f"{place}: name",
        remedy="use letters, digits, '-', '_' and '.'",
    )


def _unknown_placeholder(text: str, place: str) -> RecipeError:
    return RecipeError(
        f"unknown {text}",
        place=f"{place}: output",
        remedy="only {name} stands for something here",
    )


def _read(source: str | Path | Mapping[str, Any] | Recipe) -> tuple[dict[str, Any], str, str]:
    """Return the values of a recipe, what messages call it, and its name where it gives none."""
    if isinstance(source, Recipe):
        return source.model_dump(), "recipe", source.name
    if isinstance(source, Mapping):
        return _to_plain(source), "recipe", "run"
    return _read_file(str(source))


def _read_file(name: str) -> tuple[dict[str, Any], str, str]:
    path = find_recipe(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {error}", place=str(path)) from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise _no_mapping(values, path)
    anchor_paths(values, path.parent)
    return values, str(path), path.stem


def _no_mapping(values: Any, path: Path) -> RecipeError:
    kind = "empty" if values is None else f"a {type(values).__name__}"
    problem = f"a recipe is a mapping of keys to values, this is {kind}"
    return RecipeError(problem, place=str(path))


def _check_task(recipe: Recipe, place: str) -> str:
    """Refuse an unknown task, and keys that the task does not read; return its real name."""
    from lmkit.tasks.registry import problem, readers_of, real_name

    if real_name(recipe.task) is None:
        raise _unknown_task(recipe.task, place)
    solved = problem(recipe.task)
    task = solved.name
    defaults = type(recipe)()
    for key in known_keys():
        readers = readers_of(key)
        if not readers or task in readers or _value(recipe, key) == _value(defaults, key):
            continue
        if key == "data.labels" and _has_labels(solved, recipe):
            continue
        _refuse_without_effect(key, task, readers)
    return task


def _unknown_task(task: str, place: str) -> RecipeError:
    from lmkit.tasks.registry import name_here, names

    here = name_here(task)
    remedy = f"here it is {here}" if here else suggest(task, names())
    return RecipeError(f"unknown task {task!r}", place=f"{place}: task", remedy=remedy)


def _refuse_without_effect(key: str, task: str, readers: Sequence[str]) -> None:
    """Refuse a key that the task does not read; only warn of those that older recipes give."""
    if key not in TOLERATED:
        raise RecipeError(
            f"has no effect on {task}",
            place=key,
            remedy=f"leave it out: it is for {', '.join(readers)}",
        )
    console.warn(f"{key} has no effect on {task}: it is for {', '.join(readers)}")


def _has_labels(solved: Problem, recipe: Recipe) -> bool:
    """Tell if the rows of a task have labels, whether or not it names the key in ``keys``."""
    fields = solved.fields(recipe)
    return any(field.gold and field.kind in ("label", "labels", "tags") for field in fields)


def _check_fast(recipe: Recipe) -> None:
    """Refuse a fast path that is asked for by name where all of them are off."""
    hardware = recipe.hardware
    for key, value, plain in (
        ("attention", "flash", "sdpa"),
        ("kernels", "liger", "torch"),
        ("compile", "on", "off"),
    ):
        if getattr(hardware, key) == value:
            raise _contradicts_off(key, value, plain)


def _contradicts_off(key: str, value: str, plain: str) -> RecipeError:
    return RecipeError(
        f"hardware.{key}: {value} is one of the things that hardware.fast: off leaves out",
        place=f"hardware.fast, hardware.{key}",
        remedy=f"hardware.fast=auto, or hardware.{key}={plain}",
    )


def _value(recipe: Recipe, dotted: str) -> Any:
    return reduce(getattr, dotted.split("."), recipe)


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML with every value, defaults included, and local paths made absolute."""
    values = recipe.model_dump()
    make_absolute(values)
    return dump_yaml(values)


def _to_plain(value: Any) -> Any:
    """Convert what a Python caller may have to plain values: numbers and texts of NumPy, views and sets."""
    if isinstance(value, Mapping):
        return {_to_plain(key): _to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, Set)):
        return [_to_plain(entry) for entry in value]
    if isinstance(value, str):
        return str.__str__(value)
    return value.item() if getattr(value, "shape", None) == () else value


def _apply(values: dict[str, Any], override: str) -> str:
    """Set one key from KEY=VALUE in place; return the key."""
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
    """Check the values; a mistake is one of the file, unless its key was ``given`` as KEY=VALUE."""
    mistakes: list[Mistake] = []
    recipe = convert_section(recipe_type(), values, mistakes)
    if recipe is not None:
        return recipe
    raise _wrong_values(mistakes, place, given)


def _wrong_values(mistakes: list[Mistake], place: str, given: Sequence[str]) -> RecipeError:
    lines = [_explain(mistake) for mistake in mistakes]
    keys = [".".join(mistake.path) for mistake in mistakes]
    from_file = any(not any(f"{key}.".startswith(f"{name}.") for name in given) for key in keys)
    return RecipeError("\n  ".join(lines), place=place if from_file else None)


EXAMPLES = {
    "model": " such as {base: runs/mlm}",
    "data": " such as {train: train.jsonl}",
    "tokenizer": " such as {base: runs/mlm}",
    "lora": " such as {rank: 16}",
}


def _explain(mistake: Mistake) -> str:
    """Describe a mistake, after its dotted key."""
    key = ".".join(mistake.path)
    if mistake.expected is None:
        return f"{key}: {explain_unknown(mistake.path)}"
    return f"{key}: expected {mistake.expected}{EXAMPLES.get(key, '')}, found {mistake.value!r}"
