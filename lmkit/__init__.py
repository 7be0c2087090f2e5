"""lmkit: raw text to a pretrained model, fine-tuned for a task, measured with intervals.

import lmkit
run = lmkit.finetune("recipe.yaml")
lmkit.evaluate(run)
lmkit.load(run).predict(["a text"])
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmkit.commands.predict import Predictor
    from lmkit.recipe.schema import Recipe
    from lmkit.run import Run

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "finetune", "load", "pretrain"]


def pretrain(
    recipe: str | Path | Mapping[str, object] | Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """Train a language model; returns the run."""
    return _train("pretrain", recipe, resume, overwrite)


def finetune(
    recipe: str | Path | Mapping[str, object] | Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """Train a task model; returns the run."""
    return _train("finetune", recipe, resume, overwrite)


def _train(
    stage: str, recipe: str | Path | Mapping[str, object] | Recipe, resume: bool, overwrite: bool
) -> Run:
    from lmkit.commands.train import train
    from lmkit.run import Run

    return Run(train(stage, recipe, resume=resume, overwrite=overwrite).run)


def evaluate(recipe_or_run: str | Path | Mapping[str, object] | Recipe | Run) -> Run:
    """Evaluate a run, a model directory or a recipe; the numbers are in ``run.metrics("test")``."""
    from lmkit.flow.evaluation import evaluate_subject
    from lmkit.run import Run
    from lmkit.subject import find_subject

    source = recipe_or_run.path if isinstance(recipe_or_run, Run) else recipe_or_run
    subject = find_subject(source)
    evaluate_subject(subject)
    return subject.run


def load(run: str | Path | Run) -> Predictor:
    """A trained model that answers: ``load(run).predict(["a text"])``."""
    from lmkit.commands.predict import Predictor
    from lmkit.run import Run

    return Predictor(run.path if isinstance(run, Run) else run)
