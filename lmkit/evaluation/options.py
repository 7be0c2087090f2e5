"""What may be asked of an evaluation: keys that could have no effect are refused, before torch is loaded."""

from __future__ import annotations

from lmkit.errors import RecipeError
from lmkit.recipe.schema import Recipe
from lmkit.tasks.registry import task_class


def check_eval_keys(recipe: Recipe) -> None:
    """Refuse keys of the ``eval`` section that the task has no use for.

    Raises:
        RecipeError: names the key and the tasks it is for.
    """
    options, task = recipe.eval, recipe.task
    gold = [
        field for field in task_class(task).fields if field.gold and field.kind in ("label", "tags")
    ]
    if "label" in options.slices and not gold:
        raise RecipeError(
            f"{task} has no labels to slice by", place="eval.slices", remedy="leave label out"
        )
    if options.stride is not None and task != "clm":
        raise RecipeError(
            f"only clm reads documents in windows that slide, not {task}",
            place="eval.stride",
            remedy="leave it out",
        )
    if options.stride is not None and options.stride > recipe.data.max_length:
        raise RecipeError(
            f"{options.stride} tokens, more than data.max_length = {recipe.data.max_length}: tokens in between would not be scored",
            place="eval.stride",
            remedy="choose a smaller one, for example half of data.max_length",
        )
    if options.pseudo_perplexity and task != "mlm":
        raise RecipeError(
            f"only masked models have one, not {task}",
            place="eval.pseudo_perplexity",
            remedy="leave it out",
        )
    if options.temperature and task != "classification":
        raise RecipeError(
            f"a temperature is fitted to the probabilities of a classifier, and {task} has none",
            place="eval.temperature",
            remedy="leave it out",
        )
