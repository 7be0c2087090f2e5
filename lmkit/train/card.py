"""The model card: what the model is, what it learned from, how good it is, how to use it."""

from __future__ import annotations

from typing import Any

from lmkit.evaluation.evaluate import metrics_table
from lmkit.recipe.schema import Recipe
from lmkit.tasks.base import Task

USE = {
    "mlm": 'lmkit predict RUN "a text with one {mask}"',
    "clm": 'lmkit predict RUN "the beginning of a text"',
    "classification": 'lmkit predict RUN "a text"',
    "ner": 'lmkit predict RUN "a text"',
    "translation": 'lmkit predict RUN "a sentence"',
}


def model_card(recipe: Recipe, task: Task, manifest: dict[str, Any], validation: dict[str, Any]) -> str:
    """README.md of a run directory."""
    parameters = manifest["parameters"]
    files = "\n".join(
        f"- {entry['split']}: `{entry['path'].rsplit('/', 1)[-1]}`, {entry['rows']} rows, sha256 `{entry['sha256'][:16]}`"
        for entry in manifest["data"]
    )
    lines = [
        f"# {recipe.name}",
        f"Task: {task.name}. Weights from: {manifest['model']}. {parameters['total']:,} parameters, {parameters['trained']:,} trained.",
        f"## Data\n{files}",
        f"## Training\n{manifest['steps']} steps of {recipe.train.batch_size} examples, {manifest['tokens_seen']:,} tokens, {manifest['seconds']:.0f} seconds; seed {recipe.seed}. `recipe.yaml` repeats it; `manifest.json` says with what.",
    ]
    if labels := task.facts.get("labels"):
        lines.append("## Labels\n" + ", ".join(f"`{label}`" for label in labels))
    if validation:
        lines.append(f"## Validation\n{validation['examples']} examples:\n\n```\n{metrics_table(validation)}\n```")
    use = USE.get(task.name, "lmkit predict RUN").format(mask=getattr(task.tokenizer, "mask_token", ""))
    lines.append(f"## Use\n```\n{use}\n```")
    return "\n\n".join(lines) + "\n"
