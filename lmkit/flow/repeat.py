"""Several runs of one recipe: other seeds (``seeds: 5``) or cross-validation (``data.folds: 5``); mean, spread, interval."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmkit import console
from lmkit.errors import RunError
from lmkit.flow.evaluation import evaluate_subject
from lmkit.flow.singles import measured_on, single_runs
from lmkit.flow.training import train_one
from lmkit.recipe import Recipe
from lmkit.recipe.load import dump_recipe
from lmkit.records import Metrics, finite
from lmkit.run import Run, write_json
from lmkit.subject import find_subject

SUMMARY = "summary.json"
PARTS = re.compile(r"(seed|fold)-\d+|summary\.json")
HARMLESS = ("name", "output", "hardware", "logging")  # may change before the runs go on


@dataclass(frozen=True)
class SingleRun:
    """One of the runs: its folder, its seed or fold, and its metrics."""

    run: str
    number: int
    examples: int
    metrics: Mapping[str, float | None]


@dataclass(frozen=True)
class RepeatSummary:
    """Mean, standard deviation (n - 1) and Student's interval of every metric over the runs.

    The interval is about the mean of such runs: with ``seeds`` on this test set, whose own choice is each run's interval's
    affair. Folds share most of their training rows, so theirs is somewhat too narrow (Bengio and Grandvalet 2004).

    Args:
        over: ``seeds`` or ``folds``.
    """

    run: str
    task: str
    over: str
    split: str
    confidence: float
    metrics: Mapping[str, Mapping[str, float | None]]
    runs: tuple[SingleRun, ...]

    def to_json(self) -> dict[str, Any]:
        kind = self.over.removesuffix("s")
        runs = [
            {"run": run.run, kind: run.number, "examples": run.examples, "metrics": run.metrics}
            for run in self.runs
        ]
        return {
            "run": self.run,
            "task": self.task,
            "over": self.over,
            "split": self.split,
            "confidence": self.confidence,
            "metrics": self.metrics,
            "runs": runs,
        }

    def to_text(self) -> str:
        rows = []
        for name, metric in self.metrics.items():
            bounds = f"{_shown(metric['low'])} ... {_shown(metric['high'])}"
            rows.append([name, _shown(metric["mean"]), _shown(metric["sd"]), bounds])
        header = [self.split, f"mean of {len(self.runs)} {self.over}", "standard deviation"]
        return console.table([*header, f"{self.confidence * 100:g} % interval"], rows)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def repeat(
    stage: str, recipe: Recipe, *, resume: bool = False, overwrite: bool = False
) -> RepeatSummary:
    """Train and evaluate every run, and sum them up in ``summary.json``.

    Args:
        resume: runs that are finished stay, one that was interrupted goes on.

    Raises:
        RunError: the directory is not empty, or holds something else, or runs of another recipe.
    """
    folder, runs = Path(recipe.output), single_runs(recipe)
    _check_place(folder, resume=resume, overwrite=overwrite)
    finished = {name for name, single in runs if resume and _is_finished(Run(single.output))}
    for name, single in runs:
        if name in finished:
            _check_same(single)
    (folder / SUMMARY).unlink(missing_ok=True)
    measured = []
    for number, (name, single) in enumerate(runs, 1):
        console.say(f"\n== {name} ({number} of {len(runs)})")
        run = Run(single.output)
        if name not in finished:
            exists = run.path.is_dir()
            train_one(stage, single, resume=resume and exists, overwrite=overwrite and exists)
        measured.append(_measure(run, single))
    summary = summarise(recipe, [name for name, _ in runs], measured)
    write_json(folder / SUMMARY, summary.to_json())
    console.say(f"\n{summary.to_text()}\n\nwritten to {folder / SUMMARY}")
    return summary


def _check_place(folder: Path, *, resume: bool, overwrite: bool) -> None:
    Run(folder).check_place()
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if names and not (resume or overwrite):
        raise RunError(
            "the output directory is not empty",
            place=str(folder),
            remedy="add --resume to go on with its runs, --overwrite to start anew, or -o DIR for another place",
        )
    if others := [name for name in names if not PARTS.fullmatch(name)]:
        raise RunError(
            f"not a folder of several runs: it holds {others[0]}",
            place=str(folder),
            remedy="give another -o/--output",
        )


def _is_finished(run: Run) -> bool:
    return run.is_finished and run.manifest_file.is_file() and "finished" in run.manifest


def _check_same(single: Recipe) -> None:
    """Refuse to sum up a finished run of another recipe with the others."""
    import yaml

    run = Run(single.output)
    stored, now = (
        {key: value for key, value in values.items() if key not in HARMLESS}
        for values in (run.stored_recipe(), yaml.safe_load(dump_recipe(single)))
    )
    before = _flat(stored)
    changed = [key for key, value in _flat(now).items() if value != before.get(key)]
    if changed:
        raise RunError(
            f"this run was made with other {', '.join(changed)}",
            place=str(run.path),
            remedy="restore what it was, or start anew with --overwrite or another -o",
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested keys as dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _measure(run: Run, single: Recipe) -> Metrics:
    """Evaluate a run, unless training did (on validation) or the command that was interrupted."""
    split = measured_on(single)
    if run.eval_folder(split).is_dir():
        metrics = Metrics.from_json(run.metrics(split))
        if metrics.baselines is not None or not single.eval.baseline:
            return metrics
    evaluated = evaluate_subject(find_subject(run.path))
    assert evaluated is not None  # several runs are not trained under a launcher
    return evaluated


def summarise(recipe: Recipe, names: Sequence[str], measured: Sequence[Metrics]) -> RepeatSummary:
    """Sum up the metrics of runs."""
    from lmkit.metrics.intervals import student_interval

    kind = "seed" if recipe.data.folds is None else "fold"
    runs = []
    for name, metrics in zip(names, measured, strict=True):
        values = {"loss": finite(metrics.loss)}
        values |= {key: finite(metric.value) for key, metric in metrics.metrics.items()}
        runs.append(SingleRun(name, int(name.partition("-")[2]), metrics.examples, values))
    confidence = recipe.eval.confidence
    intervals = {
        name: student_interval([run.metrics[name] for run in runs], confidence)
        for name in runs[0].metrics
    }
    return RepeatSummary(
        run=recipe.output,
        task=recipe.task,
        over=f"{kind}s",
        split=measured[0].split,
        confidence=confidence,
        metrics=intervals,
        runs=tuple(runs),
    )
