"""The tasks by name. One line here, one file beside it, one recipe and one test make a new task."""

from __future__ import annotations

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


def task_class(name: str) -> type[Task]:
    """The class behind a task's name; importing it loads no torch."""
    module, _, attribute = TASKS[name].partition(":")
    found: type[Task] = getattr(import_module(module), attribute)
    return found
