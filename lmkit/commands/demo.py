"""``lmkit demo``: the whole way on shipped data, and one table at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lmkit import console
from lmkit.commands.evaluate import evaluate
from lmkit.commands.train import train
from lmkit.errors import RunError
from lmkit.recipe import load_recipe
from lmkit.run import Run, is_run, write_json


def run_demo(output: str, *, overwrite: bool = False) -> dict[str, Any]:
    """Tokenizer, MLM, causal LM, classification, NER, translation, evaluation; each beside its floor.

    Args:
        output: the folder for the runs.

    Returns:
        The rows of the table.

    Raises:
        RunError: earlier runs are there and ``overwrite`` was not given.
    """
    folder = Path(output)
    if not overwrite and any(is_run(folder / name) for name in ("mlm", "clm", "classification", "ner", "translation")):
        raise RunError("an earlier demo is there", place=output, remedy="add --overwrite, or -o DIR for another place")
    begun = time.perf_counter()
    encoder = f"model.base={folder / 'mlm'}"
    # the same architecture and tokenizer with random weights, all of them trained, as LoRA on those would be no rival
    preset = load_recipe("demo/mlm").model.preset
    scratch = [
        "model.base=null",
        f"model.preset={preset}",
        f"tokenizer.base={folder / 'mlm' / 'model'}",
        "lora=null",
        "train.learning_rate=1e-3",
    ]

    rows = [_language_model("pretrain", "mlm", folder, "loss", overwrite)]
    rows.append(_language_model("pretrain", "clm", folder, "bits_per_byte", overwrite))
    for name, metric in (("classification", "accuracy"), ("ner", "f1")):
        trained = _run("finetune", name, folder / name, [encoder], overwrite)
        floor = _run("finetune", name, folder / f"{name}-from-random", scratch, overwrite)
        rows.append(_row(name, trained, metric, "from random weights", floor["metrics"][metric]))
    rows.append(_translation(folder, overwrite))

    console.say(
        "\n"
        + console.table(
            ["task", "trained", "metric", "test", "beside it", "its test", "seconds"], [list(row.values()) for row in rows]
        )
    )
    seconds = round(time.perf_counter() - begun, 1)
    console.say(f"\n95 % bootstrap intervals; {seconds:.0f} seconds in all. The runs are in {folder}; for example:")
    console.say(f'  lmkit predict {folder / "translation"} "I like this house."')
    summary = {"rows": rows, "seconds": seconds, "output": str(folder)}
    write_json(folder / "demo.json", summary)
    return summary


TRAINED = {
    "mlm": "tokenizer and encoder from random weights",
    "clm": "tokenizer and decoder from random weights",
    "classification": "the MLM encoder",
    "ner": "the MLM encoder",
    "translation": "tokenizer and encoder-decoder from random weights",
}


def _run(stage: str, name: str, folder: Path, overrides: list[str], overwrite: bool) -> dict[str, Any]:
    """Train and evaluate; the test metrics with the seconds of both."""
    console.say(f"\n== {folder.name}: lmkit {stage} demo/{name} {' '.join(overrides)}")
    begun = time.perf_counter()
    train(stage, f"demo/{name}", overrides, output=str(folder), overwrite=overwrite and is_run(folder))
    found = evaluate(str(folder))
    return found | {"total_seconds": time.perf_counter() - begun}


def _language_model(stage: str, name: str, folder: Path, metric: str, overwrite: bool) -> dict[str, Any]:
    found = _run(stage, name, folder / name, [], overwrite)
    return _row(name, found, metric, "token frequencies", _unigram(Run(folder / name))[metric])


def _unigram(run: Run) -> dict[str, dict[str, float | None]]:
    from lmkit.data.splits import load_splits
    from lmkit.evaluation.baselines import unigram_statistics
    from lmkit.metrics.intervals import bootstrap_intervals
    from lmkit.models.tokenizer import load_tokenizer
    from lmkit.tasks.registry import task_class

    recipe = load_recipe(run.recipe_file)
    splits = load_splits(recipe, task_class(recipe.task), wanted=("train", "test"))
    tokenizer = load_tokenizer(str(run.model))
    # a causal model predicts the end of a document too
    end = [tokenizer.eos_token_id] if recipe.task == "clm" else []

    def tokens(split: str) -> Any:
        for row in splits.rows[split]:
            ids = tokenizer(row["text"], add_special_tokens=False, verbose=False)["input_ids"]
            yield ids + end, len(row["text"].encode())

    statistics = unigram_statistics((ids for ids, _ in tokens("train")), tokens("test"), vocabulary=len(tokenizer))
    return {metric: interval.as_dict() for metric, interval in bootstrap_intervals(statistics).items()}


def _translation(folder: Path, overwrite: bool) -> dict[str, Any]:
    from lmkit.data.splits import load_splits
    from lmkit.evaluation.baselines import nearest_targets
    from lmkit.metrics.intervals import bootstrap_intervals
    from lmkit.metrics.translation import translation_statistics
    from lmkit.tasks.registry import task_class

    found = _run("finetune", "translation", folder / "translation", [], overwrite)
    recipe = load_recipe(Run(folder / "translation").recipe_file)
    rows = load_splits(recipe, task_class("translation"), wanted=("train", "test")).rows
    nearest = nearest_targets([(row["source"], row["target"]) for row in rows["train"]], [row["source"] for row in rows["test"]])
    statistics = translation_statistics(nearest, [row["target"] for row in rows["test"]])
    return _row("translation", found, "bleu", "nearest training sentence", bootstrap_intervals(statistics)["bleu"].as_dict())


def _row(name: str, found: dict[str, Any], metric: str, floor: str, value: dict[str, float | None]) -> dict[str, Any]:
    recipe = load_recipe(f"demo/{name}")
    how = TRAINED[name] + (" with LoRA" if recipe.lora else ", all weights" if recipe.model.base else "")
    return {
        "task": name,
        "trained": how,
        "metric": metric,
        "value": _shown(found["metrics"][metric], metric),
        "beside": floor,
        "its_value": _shown(value, metric),
        "seconds": round(found["total_seconds"]),
    }


def _shown(value: dict[str, float | None], metric: str) -> str:
    digits = 1 if metric == "bleu" else 3
    return "{value:.{n}f} ({low:.{n}f} ... {high:.{n}f})".format(**value, n=digits)
