"""Several runs of one recipe: other seeds (``seeds: 5``) or cross-validation (``data.folds: 5``); mean, spread, interval."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmkit import console
from lmkit.errors import RunError
from lmkit.flow.evaluation import evaluate_subject
from lmkit.flow.singles import measured_on, single_runs
from lmkit.flow.training import train_one
from lmkit.recipe import Recipe
from lmkit.recipe.load import dump_recipe
from lmkit.run import Run, write_json
from lmkit.subject import find_subject

SUMMARY = "summary.json"
PARTS = re.compile(r"(seed|fold)-\d+|summary\.json")
HARMLESS = ("name", "output", "hardware", "logging")  # may change before the runs go on


def repeat(
    stage: str, recipe: Recipe, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Train and evaluate every run, and sum them up in ``summary.json``.

    Args:
        resume: runs that are finished stay, one that was interrupted goes on.

    Returns:
        The summary.

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
    found = []
    for number, (name, single) in enumerate(runs, 1):
        console.say(f"\n== {name} ({number} of {len(runs)})")
        run = Run(single.output)
        if name not in finished:
            there = run.path.is_dir()
            train_one(stage, single, resume=resume and there, overwrite=overwrite and there)
        found.append(_measured(run, single))
    summary = summarise(recipe, [name for name, _ in runs], found)
    write_json(folder / SUMMARY, summary)
    console.say(f"\n{summary_table(summary)}\n\nwritten to {folder / SUMMARY}")
    return summary


def _check_place(folder: Path, *, resume: bool, overwrite: bool) -> None:
    Run(folder).check_place()
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if there and not (resume or overwrite):
        raise RunError(
            "the output directory is not empty",
            place=str(folder),
            remedy="add --resume to go on with its runs, --overwrite to start anew, or -o DIR for another place",
        )
    if others := [name for name in there if not PARTS.fullmatch(name)]:
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
    if changed := [key for key in _flat(now) if _flat(now)[key] != _flat(stored).get(key)]:
        raise RunError(
            f"this run was made with other {', '.join(changed)}",
            place=str(run.path),
            remedy="restore what it was, or start anew with --overwrite or another -o",
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {prefix + key: value}
        )
    return found


def _measured(run: Run, single: Recipe) -> dict[str, Any]:
    """The content of metrics.json: training leaves that of validation, and a resumed command may find both."""
    split = measured_on(single)
    if run.eval_folder(split).is_dir():
        found = run.metrics(split)
        if "baselines" in found or not single.eval.baseline:
            return found
    return evaluate_subject(find_subject(run.path))


def summarise(
    recipe: Recipe, names: Sequence[str], found: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and Student's interval of every metric over the runs.

    The interval is about the mean of such runs: with ``seeds`` on this test set, whose own choice is each run's interval's
    affair. Folds share most of their training rows, so theirs is somewhat too narrow (Bengio and Grandvalet 2004).
    """
    from lmkit.metrics.intervals import student_interval

    kind = "seed" if recipe.data.folds is None else "fold"
    values = [
        {"loss": each["loss"]} | {name: m["value"] for name, m in each["metrics"].items()}
        for each in found
    ]
    confidence = recipe.eval.confidence
    return {
        "run": recipe.output,
        "task": recipe.task,
        "over": f"{kind}s",
        "split": found[0]["split"],
        "confidence": confidence,
        "metrics": {
            name: student_interval([each[name] for each in values], confidence)
            for name in values[0]
        },
        "runs": [
            {
                "run": name,
                kind: int(name.partition("-")[2]),
                "examples": each["examples"],
                "metrics": its,
            }
            for name, each, its in zip(names, found, values, strict=True)
        ],
    }


def summary_table(summary: dict[str, Any]) -> str:
    """The metrics over the runs, for people."""

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    rows = [
        [name, shown(m["mean"]), shown(m["sd"]), f"{shown(m['low'])} ... {shown(m['high'])}"]
        for name, m in summary["metrics"].items()
    ]
    header = [
        summary["split"],
        f"mean of {len(summary['runs'])} {summary['over']}",
        "standard deviation",
    ]
    return console.table([*header, f"{summary['confidence'] * 100:g} % interval"], rows)
