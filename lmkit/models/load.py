"""Models loaded as they were saved, for evaluation and prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmkit.errors import ModelError, RecipeError
from lmkit.heads import learns_positions, unwrap
from lmkit.models.adapters import load_adapter
from lmkit.models.build import check_length
from lmkit.models.causal import check_causal
from lmkit.models.config import check_architecture, load_config
from lmkit.models.crf import FILE as CRF_FILE
from lmkit.models.crf import add_crf, load_crf
from lmkit.models.pretrained import from_pretrained
from lmkit.models.source import ModelSource

if TYPE_CHECKING:
    from lmkit.tasks.base import Task


def load_trained(source: ModelSource, task: Task) -> Any:
    """Load a model as it was saved: every weight loaded, none made up.

    Raises:
        ModelError: a weight the task needs is missing (a base model that was never fine-tuned), or the adapter's base is gone.
    """
    recipe, auto_class = task.recipe, task.problem.auto_class
    check_architecture(load_config(source, recipe), task)
    if source.is_adapter:
        model = load_adapter(source, auto_class, recipe)
    else:
        model, new = from_pretrained(auto_class, source.location, recipe.model, {})
        if new:
            raise _untrained(source, task, new)
    inner = unwrap(model)
    check_length(inner, task)
    if task.max_length > task.tokenizer.model_max_length and learns_positions(inner):
        raise _trained_on_less(task)
    if task.problem.architecture == "decoder":
        check_causal(model)
    task.configure(inner)
    if recipe.tagging.crf:
        _add_trained_crf(model, source, task)
    return model.eval()


def _untrained(source: ModelSource, task: Task, new: list[str]) -> ModelError:
    return ModelError(
        f"this model was not trained for {task.name}: no weights for {', '.join(new)}",
        place=source.location,
        remedy=f"fine-tune it first: a recipe with model.base={source.location}",
    )


def _trained_on_less(task: Task) -> RecipeError:
    length = int(task.tokenizer.model_max_length)
    return RecipeError(
        f"{task.max_length} tokens, but by its tokenizer this model was trained on {length}, and it learns each position by itself",
        place="data.max_length",
        remedy=f"data.max_length={length} or less, or train it further at this length",
    )


def _add_trained_crf(model: Any, source: ModelSource, task: Task) -> None:
    weights = load_crf(source.location, task.recipe.model.revision)
    if weights is None:
        raise ModelError(
            f"this model has no CRF: there is no {CRF_FILE}",
            place=source.location,
            remedy="leave tagging.crf out, or train with it",
        )
    add_crf(model, len(task.facts["labels"]), weights)
