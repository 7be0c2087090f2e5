"""The tasks by name. One line here, one file beside it, one recipe and one test make a new task."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmkit.tasks.base import Task

TASKS = {
    "mlm": "lmkit.tasks.mlm.task:MaskedLanguageModeling",
    "clm": "lmkit.tasks.clm.task:CausalLanguageModeling",
    "denoise": "lmkit.tasks.denoise.task:Denoising",
    "classification": "lmkit.tasks.classification.task:Classification",
    "ner": "lmkit.tasks.ner.task:WordTagging",
    "translation": "lmkit.tasks.translation.task:Translation",
}


# task -> the keys that it reads and some other task does not
KEYS = {
    "mlm": ("masking", "masking.whole_words"),
    "clm": ("generation",),
    "denoise": ("masking", "masking.span", "translation", "generation"),
    "classification": (
        "data.labels",
        "data.long_text",
        "data.overlap",
        "train.group_by_length",
        "classification",
    ),
    "ner": ("data.labels", "data.long_text", "data.overlap", "train.group_by_length", "tagging"),
    "translation": (
        "data.long_text",
        "train.group_by_length",
        "translation",
        "translation.target_language",
        "translation.prefix",
        "generation",
    ),
}


def keys_read_by(task: str) -> tuple[str, ...]:
    """Return the keys of a recipe that a task reads and some other task does not."""
    return KEYS[task]


def task_class(name: str) -> type[Task]:
    """The class behind a task's name; importing it loads no torch."""
    module, _, attribute = TASKS[name].partition(":")
    found: type[Task] = getattr(import_module(module), attribute)
    return found


def headline(task: str, metrics: Collection[str]) -> str:
    """Return the metric that stands for all, wherever one is shown or compared.

    Args:
        metrics: those that there are, in order.
    """
    names = task_class(task).headlines if task in TASKS else ()
    return next((name for name in names if name in metrics), next(iter(metrics)))
