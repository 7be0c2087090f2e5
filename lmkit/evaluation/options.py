"""What may be asked of an evaluation: keys that could have no effect are refused, before torch is loaded."""

from __future__ import annotations

from lmkit.errors import RecipeError
from lmkit.recipe.schema import Recipe
from lmkit.tasks.registry import problem

# key of ``eval`` -> why a task that does not know it has no use for it
USELESS = {
    "stride": "only clm reads documents in windows that slide, not {task}",
    "pseudo_perplexity": "only masked models have one, not {task}",
    "temperature": "a temperature is fitted to the probabilities of a classifier, and {task} has none",
}


def check_eval_keys(recipe: Recipe) -> None:
    """Refuse keys of the ``eval`` section that the task has no use for.

    Raises:
        RecipeError: names the key and the tasks it is for.
    """
    options, solved = recipe.eval, problem(recipe.task)
    fields = solved.fields(recipe)
    has_labels = any(field.gold and field.kind in ("label", "tags") for field in fields)
    if "label" in options.slices and not has_labels:
        raise RecipeError(
            f"{recipe.task} has no labels to slice by",
            place="eval.slices",
            remedy="leave label out",
        )
    for key, reason in USELESS.items():
        if getattr(options, key) and key not in solved.eval_keys:
            raise RecipeError(
                reason.format(task=recipe.task), place=f"eval.{key}", remedy="leave it out"
            )
    if options.stride is not None and options.stride > recipe.data.max_length:
        raise RecipeError(
            f"{options.stride} tokens, more than data.max_length = {recipe.data.max_length}: tokens in between would not be scored",
            place="eval.stride",
            remedy="choose a smaller one, for example half of data.max_length",
        )
