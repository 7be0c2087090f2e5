"""The model card: what the model is, what it learned from, how good it is, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmkit.evaluation.evaluate import metrics_table
from lmkit.models.adapters import TASK_TYPES
from lmkit.recipe.schema import Recipe
from lmkit.records import Manifest, Metrics
from lmkit.tasks.base import Card, Problem, Task


def model_card(recipe: Recipe, task: Task, manifest: Manifest, validation: Metrics | None) -> str:
    """Return README.md of a run directory that ended."""
    trained, parameters = manifest.parameters["trained"], manifest.parameters["total"]
    files = "\n".join(
        f"- {file.split}: `{file.path.rsplit('/', 1)[-1]}`, {file.rows} rows, sha256 `{file.sha256[:16]}`"
        for file in manifest.data
    )
    ending = manifest.ending
    assert ending is not None
    lines = [
        f"# {recipe.name}",
        f"Task: {task.name}. Weights from: {manifest.model}. {parameters:,} parameters, {trained:,} trained.",
        f"## Data\n{files}",
        f"## Training\n{ending.steps} steps of {recipe.train.batch_size} examples, {ending.tokens_seen:,} tokens, {ending.seconds:.0f} seconds; seed {recipe.seed}. `recipe.yaml` repeats it; `manifest.json` says with what.",
    ]
    if labels := task.facts.get("labels"):
        lines.append("## Labels\n" + ", ".join(f"`{label}`" for label in labels))
    if validation:
        lines.append(
            f"## Validation\n{validation.examples} examples:\n\n```\n{metrics_table(validation)}\n```"
        )
    card = task.problem.card(task.facts, task.tokenizer)
    if recipe.lora is not None:
        card = replace(card, python=opened_with_peft(task))
    lines.append(_use(card, "RUN", "RUN/model"))
    return "\n\n".join(lines) + "\n"


def merged_card(
    name: str,
    problem: Problem,
    config: Any,
    tokenizer: Any,
    made: Mapping[str, str],
    difference: float,
) -> str:
    """README.md of a merged model's directory.

    Args:
        made: where ``adapter`` and ``base`` were.
        difference: largest one between the logits of the two and of the model.
    """
    lines = [
        f"# {name}",
        f"Task: {problem.name}. A plain Hugging Face {config.model_type} model: the adapter `{_short(made['adapter'])}` merged into its base `{_short(made['base'])}`; logits differ from the adapter's by at most {difference:.1e} (fp32).",
    ]
    if TASK_TYPES.get(problem.auto_class) in ("SEQ_CLS", "TOKEN_CLS"):
        labels = [f"`{config.id2label[number]}`" for number in sorted(config.id2label)]
        lines.append("## Labels\n" + ", ".join(labels))
    lines.append(_use(problem.card({}, tokenizer), "DIR", "DIR"))
    return "\n\n".join(lines) + "\n"


def _short(place: str) -> str:
    """The name of a run or model: every run's model directory has the same."""
    path = Path(place)
    return path.parent.name if path.name == "model" else path.name


def _use(card: Card, command_place: str, model_place: str) -> str:
    command = card.command.replace("DIR", command_place)
    python = card.python.replace("DIR", model_place)
    return f"## Use\n```\n{command}\n```\n```python\n{python}\n```"


def opened_with_peft(task: Task) -> str:
    """Return Python that opens an adapter without lmkit: the base's config does not know the number of labels."""
    auto_class = task.problem.auto_class
    name = auto_class.removeprefix("AutoModel") if auto_class in TASK_TYPES else ""
    labels = f", num_labels={count}" if (count := task.model_config().get("num_labels")) else ""
    return f'from peft import AutoPeftModel{name}\n\nmodel = AutoPeftModel{name}.from_pretrained("DIR"{labels})'
