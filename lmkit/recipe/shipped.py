"""Find recipes: files, and those that ship with lmkit, by name."""

from __future__ import annotations

from pathlib import Path

from lmkit.errors import RecipeError, suggest

SUFFIXES = (".yaml", ".yml")


def recipe_folder() -> Path:
    """Return where the shipped recipes are: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Return the file of every recipe that ships with lmkit by its name: ``finetune/ner`` for finetune/ner.yaml."""
    root = recipe_folder()
    recipes = {}
    for path in sorted(root.rglob("*.yaml")):
        name = path.relative_to(root).with_suffix("").as_posix()
        if not name.startswith("accelerate"):  # what Accelerate's launcher reads
            recipes[name] = path
    return recipes


def find_recipe(name: str) -> Path:
    """Return the file behind a path or a shipped name (``finetune/ner``, or ``ner`` where only one ends so).

    Raises:
        RecipeError: neither a file nor a shipped recipe; suggests the nearest of either.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    return _find_shipped(path, name)


def _find_shipped(path: Path, name: str) -> Path:
    if path.suffix in SUFFIXES:
        raise _no_such_file(path, name)
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    same_end = [full_name for full_name in shipped if full_name.split("/")[-1] == name]
    if len(same_end) == 1:
        return shipped[same_end[0]]
    if same_end:
        raise RecipeError(
            f"{name!r} is the end of several recipes", remedy=f"say which: {', '.join(same_end)}"
        )
    raise RecipeError(
        f"no recipe {name!r}: neither a file nor one that ships with lmkit",
        remedy=suggest(name, shipped),
    )


def _no_such_file(path: Path, name: str) -> RecipeError:
    beside: list[str] = []
    if path.parent.is_dir():
        beside = [str(file) for file in path.parent.glob("*") if file.suffix in SUFFIXES]
    remedy = "lmkit recipe list shows the recipes that ship"
    if beside:
        remedy = suggest(name, beside)
    return RecipeError(f"no such file: {name}", remedy=remedy)
