"""``lmkit demo``: the whole way on shipped data, and one table at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lmkit import console
from lmkit.errors import RunError
from lmkit.flow.evaluation import evaluate_subject
from lmkit.flow.training import train_one
from lmkit.preflight import check_recipe
from lmkit.recipe import load_recipe
from lmkit.run import is_run, write_json
from lmkit.subject import find_subject


def run_demo(output: str, *, overwrite: bool = False) -> dict[str, Any]:
    """Tokenizer, MLM, causal LM, classification, NER, translation, evaluation; each beside the best of its baselines.

    Args:
        output: the folder for the runs.

    Returns:
        The rows of the table.

    Raises:
        RunError: earlier runs are there and ``overwrite`` was not given.
    """
    folder = Path(output)
    if not overwrite and any(
        is_run(folder / name) for name in ("mlm", "clm", "classification", "ner", "translation")
    ):
        raise RunError(
            "an earlier demo is there",
            place=output,
            remedy="add --overwrite, or -o DIR for another place",
        )
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

    rows = [_row("mlm", _run("pretrain", "mlm", folder / "mlm", [], overwrite), "loss")]
    rows.append(
        _row("clm", _run("pretrain", "clm", folder / "clm", [], overwrite), "bits_per_byte")
    )
    for name, metric in (("classification", "accuracy"), ("ner", "f1")):
        rows.append(_row(name, _run("finetune", name, folder / name, [encoder], overwrite), metric))
        alone = _run("finetune", name, folder / f"{name}-from-random", scratch, overwrite)
        rows.append(
            _row(name, alone, metric, trained="the same encoder from random weights, all weights")
        )
    rows.append(
        _row(
            "translation",
            _run("finetune", "translation", folder / "translation", [], overwrite),
            "bleu",
        )
    )

    console.say(
        "\n"
        + console.table(
            ["task", "trained", "metric", "test", "beside it", "its test", "seconds"],
            [list(row.values()) for row in rows],
        )
    )
    seconds = round(time.perf_counter() - begun, 1)
    console.say(
        f"\n95 % bootstrap intervals; {seconds:.0f} seconds in all. The runs are in {folder}; for example:"
    )
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


def _run(
    stage: str, name: str, folder: Path, overrides: list[str], overwrite: bool
) -> dict[str, Any]:
    """Train and evaluate; the test metrics with the seconds of both."""
    console.say(f"\n== {folder.name}: lmkit {stage} demo/{name} {' '.join(overrides)}")
    begun = time.perf_counter()
    recipe = load_recipe(f"demo/{name}", overrides).model_copy(update={"output": str(folder)})
    check_recipe(recipe, stage)
    train_one(stage, recipe, overwrite=overwrite and is_run(folder))
    found = evaluate_subject(find_subject(folder, ["eval.baseline=true"]))
    return found | {"total_seconds": time.perf_counter() - begun}


def _row(name: str, found: dict[str, Any], metric: str, *, trained: str = "") -> dict[str, Any]:
    """A line of the table: the trained model, and beside it the best of its baselines."""
    recipe = load_recipe(f"demo/{name}")
    how = TRAINED[name] + (
        " with LoRA" if recipe.lora else ", all weights" if recipe.model.base else ""
    )
    from lmkit.metrics.direction import lower_is_better

    choose = min if lower_is_better(metric) else max
    best = choose(
        found["baselines"],
        key=lambda baseline: found["baselines"][baseline]["metrics"][metric]["value"],
    )
    return {
        "task": name,
        "trained": trained or how,
        "metric": metric,
        "value": _shown(found["metrics"][metric], metric),
        "beside": best.replace("_", " "),
        "its_value": _shown(found["baselines"][best]["metrics"][metric], metric),
        "seconds": round(found["total_seconds"]),
    }


def _shown(value: dict[str, float | None], metric: str) -> str:
    digits = 1 if metric == "bleu" else 3
    return "{value:.{n}f} ({low:.{n}f} ... {high:.{n}f})".format(**value, n=digits)
