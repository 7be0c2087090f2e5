"""The report put together: the result first, then what it is beside, where it fails, what is doubtful, and how it was made."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmkit import __version__
from lmkit.evaluation.analysis import Analysis, Background
from lmkit.evaluation.report import lineage, plots
from lmkit.evaluation.report.plots import Figure, IntervalBar
from lmkit.evaluation.report.render import read_trusted, render
from lmkit.evaluation.report.rows import hues_of, rows_of
from lmkit.evaluation.report.where import where
from lmkit.records import DataFile, Interval, Manifest, Metrics, Record
from lmkit.run import Run, command_line
from lmkit.tasks.base import Task
from lmkit.tasks.registry import headline

LABELS_SHOWN = 400


@dataclass(frozen=True)
class Line:
    """A system's result beside those of others."""

    name: str
    interval: Interval
    verdict: str
    bar: IntervalBar


def report(
    metrics: Metrics,
    analysis: Analysis,
    records: Sequence[Record],
    task: Task,
    background: Background,
) -> str:
    """Return one HTML page that asks nothing of the network: styles, figures and script are in it, and its policy forbids the rest."""
    metric, answer = headline(metrics.task, metrics.metrics), task.answer
    run, ancestors = background.run, lineage.parents(background.run)
    manifest = lineage.manifest_of(run)
    script = read_trusted("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values: dict[str, object] = {
        "name": task.recipe.name or (run.path.name if run else "model"),
        "version": __version__,
        "style": read_trusted("report.css"),
        "script": script,
        "script_hash": f"sha256-{digest}",
        "metrics": metrics,
        "headline": metric,
        "main": metrics.metrics[metric],
        "others": _other_metrics(metrics, metric),
        "beside": _beside(metrics, metric, ancestors),
        "analysis": analysis,
        "answer": answer,
        "rows": rows_of(records, answer, analysis.suspicions),
        "hues": hues_of(analysis.confusion.labels if analysis.confusion else ()),
        "learning": _learning(run),
        "files": _files(metrics.split, background, manifest),
        "labels": task.facts.get("labels") or [],
        "labels_shown": LABELS_SHOWN,
        "ancestors": ancestors,
        **where(metrics, analysis, records, answer, metric),
        **_made(metrics, run, manifest),
    }
    return render("report.html", values)


def _other_metrics(metrics: Metrics, metric: str) -> list[tuple[str, Interval]]:
    """Return all metrics but the headline, and the loss where it is none of them."""
    others = [(name, interval) for name, interval in metrics.metrics.items() if name != metric]
    if "loss" not in metrics.metrics:
        others.append(("loss", Interval(metrics.loss)))
    return others


def _beside(metrics: Metrics, metric: str, ancestors: Sequence[lineage.Parent]) -> list[Line]:
    """Put the result on one scale with the baselines, and the parent where it was measured by the same metric and split."""
    results = [("this model", metrics.metrics[metric], "")]
    for name, score in (metrics.baselines or {}).items():
        if metric in score.metrics:
            results.append((name, score.metrics[metric], score.verdict or ""))
    for parent in ancestors[:1]:
        theirs = parent.metrics.get(metrics.split)
        if theirs and parent.task == metrics.task and metric in theirs.metrics:
            results.append((f"parent: {parent.name}", theirs.metrics[metric], ""))
    if len(results) < 2:
        return []
    scale = plots.scale_of([interval for _, interval, _ in results])
    return [
        Line(name, interval, verdict, plots.interval_bar(interval, scale, is_second=number > 0))
        for number, (name, interval, verdict) in enumerate(results)
    ]


def _learning(run: Run | None) -> list[Figure]:
    """Draw loss in training and metrics on validation rows by step."""
    lines = run.log_lines() if run is not None else []
    losses = [
        (line["step"], line["loss"]) for line in lines if isinstance(line.get("loss"), (int, float))
    ]
    if len(losses) < 2:
        return []
    validation = _validation_curves(lines)
    curves, caption = [losses], "Loss in training"
    if "loss" in validation:
        curves.append(validation["loss"])
        caption += " and (red) on validation rows"
    drawing = plots.curves(curves, x_label="step", y_label="loss", title="training loss")
    figures = [Figure(drawing, caption)]
    for name, points in validation.items():
        if name != "loss" and len(points) > 1:
            drawing = plots.curves(
                [points], x_label="step", y_label=name, title=f"validation {name}"
            )
            figures.append(Figure(drawing, f"{name} on validation rows"))
    return figures


def _validation_curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[plots.Point]]:
    curves: dict[str, list[plots.Point]] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith("validation_") and isinstance(value, (int, float)):
                name = key.removeprefix("validation_")
                curves.setdefault(name, []).append((line["step"], value))
    return curves


def _files(split: str, background: Background, manifest: Manifest | None) -> list[DataFile]:
    """Return the files that were evaluated, and those that the model was trained with."""
    files = [replace(file, split=split) for file in background.data]
    evaluated = {file.sha256 for file in files}
    if manifest is not None:
        files += [file for file in manifest.data if file.sha256 not in evaluated]
    return files


def _made(metrics: Metrics, run: Run | None, manifest: Manifest | None) -> dict[str, object]:
    """Return the command that repeats the run, and how the numbers were made."""
    facts: dict[str, object] = {"run": run.path if run else None}
    if manifest is not None:
        counts = manifest.parameters
        versions = [f"{name} {version}" for name, version in manifest.versions.items()]
        facts |= {
            "weights from": manifest.model,
            "parameters": f"{counts['total']:,}, of them {counts['trained']:,} trained",
            "seed": manifest.seed,
            "commit": manifest.git_commit,
            "versions": ", ".join(versions),
        }
    facts["how the numbers were made"] = metrics.signature
    return {
        "command": shlex.join(command_line()),
        "model_command": shlex.join(map(str, manifest.command)) if manifest else "",
        "facts": [(name, value) for name, value in facts.items() if value not in (None, "")],
    }
