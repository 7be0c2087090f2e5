"""A recipe with its rows and its model, as processes of their own are handed it."""

from __future__ import annotations

from dataclasses import dataclass

from lmkit.data.splits import Splits
from lmkit.models.source import ModelSource
from lmkit.recipe import Recipe


@dataclass(frozen=True)
class Case:
    """Everything that a process needs to train or to measure."""

    recipe: Recipe
    splits: Splits
    source: ModelSource | None
