"""Writes docs/recipes.md from the schema: ``make reference``."""

from __future__ import annotations

from pathlib import Path

from lmkit.models.presets import FAMILIES, SIZES
from lmkit.recipe.schema import Recipe
from lmkit.recipe.section import Key, Section, keys_of


def rows(section: type[Section], prefix: str = "") -> list[str]:
    """A table row per key, sections opened in place."""
    found = []
    for name, key in keys_of(section).items():
        inner = key.section
        if inner is None or key.default is None:
            found.append(f"| `{prefix}{name}` | {_default(key)} | {key.description} |")
        if inner is not None:
            found += rows(inner, f"{prefix}{name}.")
    return found


def _default(key: Key) -> str:
    value = key.default
    return (
        ""
        if value is None
        else f"`{value}`".replace("``", "")
        if value != {} and value != []
        else ""
    )


def page() -> str:
    """The whole page."""
    presets = "\n".join(f"| `{family}-SIZE` | {about} |" for family, about in FAMILIES.items())
    sizes = "\n".join(
        f"| `{name}` | {layers} | {width} | {heads} | {inner} |"
        for name, (layers, width, heads, inner) in SIZES.items()
    )
    keys = "\n".join(rows(Recipe))
    return f"""# Recipes: every key

Made from `lmkit/recipe/schema.py` by `make reference`. Keys are set in the recipe, or as `KEY=VALUE` on the command
line with the dotted path shown here; precedence: default, recipe, KEY=VALUE, flag. An unknown key is an error that
names the nearest one. Relative paths are looked for from the current folder, then from the recipe's.

| key | default | what it does |
|---|---|---|
{keys}

## Presets

Random weights by name; vocabulary and special tokens come from the tokenizer, and any field of the Hugging Face config
can be replaced in `model.config`.

| preset | architecture |
|---|---|
{presets}

| size | layers | width | heads | inner width |
|---|---|---|---|---|
{sizes}

Gated layers (modernbert, llama, t5) have two thirds of the inner width, which is as many parameters. marian has half
the layers on each side; `marian-base` is 6 + 6 layers of width 512.
"""


if __name__ == "__main__":
    Path(__file__).with_name("recipes.md").write_text(page(), encoding="utf-8")
