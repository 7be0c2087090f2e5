"""The model card: what the model is, what it learned from, how good it is, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmkit.evaluation.evaluate import metrics_table
from lmkit.recipe.schema import Recipe
from lmkit.records import Metrics
from lmkit.tasks.base import Task
from lmkit.tasks.denoise.task import gap_token

USE = {
    "mlm": 'lmkit predict RUN "a text with one {mask}"',
    "clm": 'lmkit predict RUN "the beginning of a text"',
    "denoise": 'lmkit predict RUN "a text with one {mask}"',
    "classification": 'lmkit predict RUN "a text"',
    "ner": 'lmkit predict RUN "a text"',
    "translation": 'lmkit predict RUN "a sentence"',
}


def model_card(
    recipe: Recipe, task: Task, manifest: dict[str, Any], validation: Metrics | None
) -> str:
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
        lines.append(
            f"## Validation\n{validation.examples} examples:\n\n```\n{metrics_table(validation)}\n```"
        )
    where = "RUN/model"
    opened = (
        opened_with_peft(task, where)
        if recipe.lora is not None
        else opened_with_transformers(task.name, where)
    )
    lines.append(_use(task.name, task.tokenizer, "RUN", opened))
    return "\n\n".join(lines) + "\n"


def merged_card(
    name: str, task: str, config: Any, tokenizer: Any, made: Mapping[str, str], difference: float
) -> str:
    """README.md of a merged model's directory.

    Args:
        made: where ``adapter`` and ``base`` were.
        difference: largest one between the logits of the two and of the model.
    """
    lines = [
        f"# {name}",
        f"Task: {task}. A plain Hugging Face {config.model_type} model: the adapter `{_short(made['adapter'])}` merged into its base `{_short(made['base'])}`; logits differ from the adapter's by at most {difference:.1e} (fp32).",
    ]
    if task in ("classification", "ner"):
        lines.append(
            "## Labels\n"
            + ", ".join(f"`{config.id2label[number]}`" for number in sorted(config.id2label))
        )
    lines.append(_use(task, tokenizer, "DIR", opened_with_transformers(task, "DIR")))
    return "\n\n".join(lines) + "\n"


def _short(place: str) -> str:
    """The name of a run or model: every run's model directory has the same."""
    path = Path(place)
    return path.parent.name if path.name == "model" else path.name


def _use(task: str, tokenizer: Any, where: str, opened: str) -> str:
    mask = gap_token(tokenizer) if task == "denoise" else getattr(tokenizer, "mask_token", "")
    command = USE.get(task, "lmkit predict RUN").replace("RUN", where).format(mask=mask)
    return f"## Use\n```\n{command}\n```\n```python\n{opened}\n```"


PIPELINES = {
    "mlm": '"fill-mask", model="DIR"',
    "clm": '"text-generation", model="DIR"',
    "classification": '"text-classification", model="DIR"',
    "ner": '"token-classification", model="DIR", aggregation_strategy="first"',
}


def opened_with_transformers(task: str, where: str) -> str:
    """Python that opens a whole model without lmkit."""
    if task in PIPELINES:
        return f"from transformers import pipeline\n\nmodel = pipeline({PIPELINES[task].replace('DIR', where)})"
    return f"""from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("{where}"), AutoModelForSeq2SeqLM.from_pretrained("{where}")
tokenizer.batch_decode(model.generate(**tokenizer("a sentence", return_tensors="pt")), skip_special_tokens=True)"""


def opened_with_peft(task: Task, where: str) -> str:
    """Python that opens an adapter without lmkit: the base's config does not know the number of labels."""
    name = task.model_class.removeprefix("AutoModel") if task.name != "mlm" else ""
    labels = f", num_labels={count}" if (count := task.model_config().get("num_labels")) else ""
    return f'from peft import AutoPeftModel{name}\n\nmodel = AutoPeftModel{name}.from_pretrained("{where}"{labels})'
