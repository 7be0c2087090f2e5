"""``lmkit demo``: the whole way on shipped data, and one table at the end."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmkit import console
from lmkit.errors import RunError
from lmkit.flow.evaluation import evaluate_subject
from lmkit.flow.training import train_one
from lmkit.preflight import check_recipe
from lmkit.recipe import load_recipe
from lmkit.records import Interval, Metrics
from lmkit.run import is_run, write_json
from lmkit.subject import find_subject


@dataclass(frozen=True)
class DemoRow:
    """A trained model with its metric, and beside it the best of its baselines; values with their intervals."""

    task: str
    trained: str
    metric: str
    value: str
    beside: str
    its_value: str
    seconds: int


@dataclass(frozen=True)
class DemoTable:
    """The runs of the demo.

    Args:
        output: their folder.
    """

    rows: tuple[DemoRow, ...]
    seconds: float
    output: str

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": [asdict(row) for row in self.rows],
            "seconds": self.seconds,
            "output": self.output,
        }

    def to_text(self) -> str:
        header = ["task", "trained", "metric", "test", "beside it", "its test", "seconds"]
        table = console.table(header, [list(asdict(row).values()) for row in self.rows])
        return (
            f"\n{table}\n\n95 % bootstrap intervals; {self.seconds:.0f} seconds in all. "
            f"The runs are in {self.output}; for example:\n"
            f'  lmkit predict {self.output}/translation "I like this house."'
        )


def run_demo(output: str, *, overwrite: bool = False) -> DemoTable:
    """Tokenizer, MLM, causal LM, classification, NER, translation, evaluation; each beside the best of its baselines.

    Args:
        output: the folder for the runs.

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

    mlm = _run("pretrain", "mlm", folder / "mlm", [], overwrite)
    clm = _run("pretrain", "clm", folder / "clm", [], overwrite)
    rows = [_row("mlm", mlm, "loss"), _row("clm", clm, "bits_per_byte")]
    for name, metric in (("classification", "accuracy"), ("ner", "f1")):
        tuned = _run("finetune", name, folder / name, [encoder], overwrite)
        rows.append(_row(name, tuned, metric))
        alone = _run("finetune", name, folder / f"{name}-from-random", scratch, overwrite)
        trained = "the same encoder from random weights, all weights"
        rows.append(_row(name, alone, metric, trained=trained))
    translation = _run("finetune", "translation", folder / "translation", [], overwrite)
    rows.append(_row("translation", translation, "bleu"))
    table = DemoTable(tuple(rows), round(time.perf_counter() - begun, 1), str(folder))
    write_json(folder / "demo.json", table.to_json())
    return table


TRAINED = {
    "mlm": "tokenizer and encoder from random weights",
    "clm": "tokenizer and decoder from random weights",
    "classification": "the MLM encoder",
    "ner": "the MLM encoder",
    "translation": "tokenizer and encoder-decoder from random weights",
}


@dataclass(frozen=True)
class Evaluated:
    """A run of the demo: its metrics, and the seconds of training and evaluation."""

    metrics: Metrics
    seconds: float


def _run(stage: str, name: str, folder: Path, overrides: list[str], overwrite: bool) -> Evaluated:
    """Train and evaluate one recipe of the demo."""
    console.say(f"\n== {folder.name}: lmkit {stage} demo/{name} {' '.join(overrides)}")
    begun = time.perf_counter()
    recipe = load_recipe(f"demo/{name}", overrides).model_copy(update={"output": str(folder)})
    check_recipe(recipe, stage)
    train_one(stage, recipe, overwrite=overwrite and is_run(folder))
    metrics = evaluate_subject(find_subject(folder, ["eval.baseline=true"]))
    assert metrics is not None  # there is one process
    return Evaluated(metrics, time.perf_counter() - begun)


def _row(name: str, run: Evaluated, metric: str, *, trained: str | None = None) -> DemoRow:
    """Return a line of the table."""
    from lmkit.tasks.direction import lower_is_better

    if trained is None:
        recipe = load_recipe(f"demo/{name}")
        weights = ", all weights" if recipe.model.base else ""
        trained = TRAINED[name] + (" with LoRA" if recipe.lora else weights)
    scores = run.metrics.baselines or {}
    baselines = {baseline: score.metrics[metric] for baseline, score in scores.items()}
    values = {name: interval.value for name, interval in baselines.items()}
    measured = {name: value for name, value in values.items() if value is not None}
    choose = min if lower_is_better(metric) else max
    best = choose(measured, key=lambda name: measured[name])
    return DemoRow(
        task=name,
        trained=trained,
        metric=metric,
        value=_shown(run.metrics.interval(metric), metric),
        beside=best.replace("_", " "),
        its_value=_shown(baselines[best], metric),
        seconds=round(run.seconds),
    )


def _shown(interval: Interval, metric: str) -> str:
    digits = 1 if metric == "bleu" else 3
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} ... {interval.high:.{digits}f})"
