"""Recipes: their schema, and how one is read, overridden and checked."""

from lmkit.recipe.load import dump_recipe, load_recipe
from lmkit.recipe.schema import Recipe
from lmkit.recipe.shipped import shipped_recipes

__all__ = ["Recipe", "dump_recipe", "load_recipe", "shipped_recipes"]
