"""The report put together: the result first, then what it is beside, where it fails, what is doubtful, and how it was made."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from lmkit import __version__
from lmkit.console import readable as number
from lmkit.evaluation.analysis import Background
from lmkit.evaluation.report import lineage, plots
from lmkit.evaluation.report.examples import choose, hues_of, kinds_in, row
from lmkit.evaluation.report.where import where
from lmkit.records import Metrics, Record
from lmkit.run import command_line
from lmkit.tasks.answers import Answer, answer_of, excerpt
from lmkit.tasks.base import Task
from lmkit.tasks.registry import headline

FOLDER = Path(__file__).parent
LABELS_SHOWN = 400


def report(
    metrics: Metrics,
    analysis: Mapping[str, Any],
    records: Sequence[Record],
    task: Task,
    background: Background,
) -> str:
    """One HTML page that asks nothing of the network: styles, figures and script are in it, and its policy forbids the rest.

    Args:
        analysis: the content of analysis.json.
    """
    found, metric = metrics.to_json(), headline(metrics.task, metrics.metrics)
    run, answer = background.run, answer_of(task)
    name = task.recipe.name or (run.path.name if run else "model")
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="lead">{escape(task.name)} · {escape(found["split"])} split · {found["examples"]:,} examples</p>',
        _result(found, metric),
        _beside(found, metric, lineage.parents(run), task.name),
        _suspicions(analysis["suspicions"], answer, found, metric),
        where(found, analysis, records, answer, metric),
        _examples(analysis, records, answer),
        _learning(run),
        _data(found, records, task, background),
        _made(found, background),
    ]
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template((FOLDER / "template.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{name}: {found['split']}"),
        style=(FOLDER / "report.css").read_text(encoding="utf-8"),
        script_hash=f"sha256-{digest}",
        script=script,
        metrics=json_in_html(found),
        body="\n".join(part for part in body if part),
        footer=f"Made by lmkit {escape(__version__)}. The numbers are in <code>metrics.json</code>, the rest in <code>analysis.json</code>, every prediction in <code>predictions.jsonl</code>.",
    )


def json_in_html(value: Any) -> str:
    """JSON for a script element: no ``<``, so no ``</script>`` in a label can end it."""
    return (
        json.dumps(value, ensure_ascii=False)
        .replace("<", "\\u003c")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _interval(entry: Mapping[str, float | None]) -> str:
    return "" if entry["low"] is None else f"{number(entry['low'])} … {number(entry['high'])}"


def _result(found: Mapping[str, Any], metric: str) -> str:
    main = found["metrics"][metric]
    level = f"{found['confidence'] * 100:g} %"
    interval = f"{level} interval {_interval(main)}" if _interval(main) else "no interval"
    others = [(name, entry) for name, entry in found["metrics"].items() if name != metric]
    if "loss" not in found["metrics"]:
        others.append(("loss", {"value": found["loss"], "low": None, "high": None}))
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{number(entry["value"])}</td><td class="sub">{_interval(entry)}</td></tr>'
        for name, entry in others
    )
    return (
        f'<div class="result"><div class="big"><small>{escape(metric)}</small>{number(main["value"])}<small>{interval}</small></div>'
        f'<div class="scroll"><table>{rows}</table></div></div>'
    )


def _beside(
    found: Mapping[str, Any], metric: str, parents: Sequence[lineage.Parent], task: str
) -> str:
    """The result on one scale with the baselines, and the parent where it was measured by the same metric and split."""
    others = [
        (name, entry["metrics"][metric], str(entry.get("verdict") or ""))
        for name, entry in (found.get("baselines") or {}).items()
        if metric in entry.get("metrics", {})
    ]
    for parent in parents[:1]:
        theirs = parent.metrics.get(found["split"])
        if theirs and parent.task == task and metric in theirs["metrics"]:
            others.append((f"parent: {parent.name}", theirs["metrics"][metric], ""))
    if not others:
        return ""
    lines = [("this model", found["metrics"][metric], ""), *others]
    scale = plots.scale_of([entry for _, entry, _ in lines])
    rows = "".join(
        f'<tr{" class=self" if i == 0 else ""}><td>{escape(name)}<div class="sub">{escape(verdict)}</div></td>'
        f'<td class="plot">{plots.interval_bar(entry, scale, second=i > 0)}</td>'
        f'<td class="n">{number(entry["value"])}<div class="sub">{_interval(entry)}</div></td></tr>'
        for i, (name, entry, verdict) in enumerate(lines)
    )
    return f'<h3>{escape(metric)} beside others</h3><div class="scroll"><table class="wide">{rows}</table></div>'


def _suspicions(
    found: Mapping[str, Any], answer: Answer, metrics: Mapping[str, Any], metric: str
) -> str:
    overlap, notes = found["overlap"], []
    if not overlap["checked"]:
        notes.append(
            f'<div class="callout calm">Whether rows also stand in training was not checked: {escape(overlap["reason"])}.</div>'
        )
    elif overlap["exact"] or overlap["near"]:
        text = f"<b>Seen in training:</b> {overlap['exact']:,} rows also stand in the {overlap['train_rows']:,} training rows, {overlap['near']:,} more nearly so."
        if clean := overlap.get("clean"):
            without = clean["metrics"][metric]
            text += f" {escape(metric)} on the {clean['examples']:,} others: <strong>{number(without['value'])}</strong> ({_interval(without)}); on all: {number(metrics['metrics'][metric]['value'])}."
        notes.append(f'<div class="callout">{text}</div>')
    else:
        notes.append(
            f'<div class="callout calm">No row also stands in the {overlap["train_rows"]:,} training rows, none nearly so.</div>'
        )
    if (always := found["always_predicted"]) is not None:
        notes.append(
            f'<div class="callout"><b>Always predicted:</b> <code>{escape(always)}</code>, though the gold differs.</div>'
        )
    if names := found["never_predicted"]:
        shown = ", ".join(f"<code>{escape(name)}</code>" for name in names[:40]) + (
            " …" if len(names) > 40 else ""
        )
        notes.append(f'<div class="callout"><b>Never predicted:</b> {shown}</div>')
    if count := found["gold"]["count"]:
        notes.append(
            f'<div class="callout"><b>Gold that may be wrong:</b> on {count:,} {answer.doubt_unit} the model confidently says otherwise. <a href="#kind=doubtful-gold">Look at the surest</a>.</div>'
        )
    return "<h2>Can it be believed?</h2>" + "".join(notes)


def _examples(analysis: Mapping[str, Any], records: Sequence[Record], answer: Answer) -> str:
    suspicions = analysis["suspicions"]
    doubtful = {entry["id"] for entry in suspicions["gold"]["rows"]}
    seen = set(suspicions["overlap"].get("ids", ()))
    count, shown = choose(records, answer, first=doubtful)
    hues = hues_of(list(analysis.get("confusion", {}).get("labels", ())))
    rows = [
        row(
            record,
            answer,
            [
                name
                for name, ids in (("doubtful gold", doubtful), ("seen in training", seen))
                if record["id"] in ids
            ],
            hues,
        )
        for record in shown
    ]
    if not rows:
        return f"<h2>{answer.heading}</h2><p>None.</p>"
    options = "".join(
        f'<option value="{escape(name.replace(" ", "-"))}">{escape(name)} ({number_of})</option>'
        for name, number_of in kinds_in(rows).items()
    )
    select = (
        f'<select aria-label="kind"><option value="">all kinds</option>{options}</select>'
        if options
        else ""
    )
    left_out = count - len(rows)
    rest = f" {left_out:,} more are in predictions.jsonl." if left_out else ""
    return (
        f'<h2>{answer.heading}</h2><p class="note">{len(rows):,} of {len(records):,} rows, {answer.order} first.{rest}</p>'
        f'<div class="tools"><input type="search" placeholder="Search" aria-label="search">{select}'
        '<button type="button" hidden>show all</button><span id="count"></span></div>'
        f'<table id="rows"><tbody>{"".join(markup for markup, _ in rows)}</tbody></table>'
        '<p><button type="button" id="more" hidden>Show more</button></p>'
    )


def _learning(run: Any) -> str:
    lines = run.log_lines() if run is not None else []
    losses = [
        (line["step"], line["loss"]) for line in lines if isinstance(line.get("loss"), (int, float))
    ]
    validation: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith("validation_") and isinstance(value, (int, float)):
                validation.setdefault(key.removeprefix("validation_"), []).append(
                    (line["step"], value)
                )
    if len(losses) < 2:
        return ""
    lines_of_loss = [losses] + ([validation["loss"]] if "loss" in validation else [])
    figures = [
        plots.curves(lines_of_loss, x_label="step", y_label="loss", title="training loss")
        + f"<figcaption>Loss in training{' and (red) on validation rows' if len(lines_of_loss) > 1 else ''}</figcaption>"
    ]
    for name, points in validation.items():
        if name != "loss" and len(points) > 1:
            figure = plots.curves(
                [points], x_label="step", y_label=name, title=f"validation {name}"
            )
            figures.append(f"{figure}<figcaption>{escape(name)} on validation rows</figcaption>")
    return f'<h2>Learning</h2><div class="grid">{"".join(f"<figure>{figure}</figure>" for figure in figures)}</div>'


def _data(
    found: Mapping[str, Any], records: Sequence[Record], task: Task, background: Background
) -> str:
    files = [{"split": found["split"], **entry} for entry in background.data]
    known = {entry["sha256"] for entry in files}
    files += [
        entry
        for entry in lineage.manifest_of(background.run).get("data", ())
        if entry["sha256"] not in known
    ]
    rows = "".join(
        f'<tr><td>{escape(str(entry["split"]))}</td><td>{escape(str(entry["path"]))}</td><td class="n">{entry["rows"]:,}</td>'
        f"<td><code>{escape(str(entry['sha256'])[:16])}</code></td></tr>"
        for entry in files
    )
    parts = ["<h2>Data</h2>"]
    if rows:
        head = '<tr><th>split</th><th>file</th><th class="n">rows</th><th>sha256</th></tr>'
        parts.append(
            f'<div class="scroll"><table class="wide"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
        )
    if labels := task.facts.get("labels"):
        shown = ", ".join(
            f"<code>{escape(excerpt(str(label), 60))}</code>" for label in labels[:LABELS_SHOWN]
        )
        more = f" and {len(labels) - LABELS_SHOWN:,} more" if len(labels) > LABELS_SHOWN else ""
        parts.append(f'<p class="note">{len(labels)} labels: {shown}{more}</p>')
    return "".join(parts)


def _made(found: Mapping[str, Any], background: Background) -> str:
    """The run's ancestors, the command that repeats it, and how the numbers were made."""
    parts = [
        "<h2>How it was made</h2>",
        f"<p>This evaluation:</p><pre>{escape(shlex.join(command_line()))}</pre>",
    ]
    manifest = lineage.manifest_of(background.run)
    if command := manifest.get("command"):
        parts.append(f"<p>The model:</p><pre>{escape(shlex.join(map(str, command)))}</pre>")
    facts = [
        (name, value)
        for name, value in (
            ("run", background.run.path if background.run else None),
            ("weights from", manifest.get("model")),
            ("parameters", _parameters(manifest)),
            ("seed", manifest.get("seed")),
            ("commit", manifest.get("git_commit")),
            (
                "versions",
                ", ".join(
                    f"{name} {version}" for name, version in manifest.get("versions", {}).items()
                ),
            ),
            ("how the numbers were made", found.get("signature")),
        )
        if value not in (None, "")
    ]
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts
    )
    parts.append(f'<div class="scroll"><table class="wide">{rows}</table></div>')
    if ancestors := lineage.parents(background.run):
        entries = "".join(
            f"<li>{escape(parent.name)} ({escape(parent.task)}){_headline(parent)}</li>"
            for parent in ancestors
        )
        parts.append(f"<h3>Its parents, the nearest first</h3><ol>{entries}</ol>")
    return "".join(parts)


def _parameters(manifest: Mapping[str, Any]) -> str | None:
    counts = manifest.get("parameters")
    return f"{counts['total']:,}, of them {counts['trained']:,} trained" if counts else None


def _headline(parent: lineage.Parent) -> str:
    """The first metric of a parent on its best known split."""
    for split in ("test", "validation"):
        if found := parent.metrics.get(split):
            name = headline(parent.task, found["metrics"])
            entry = found["metrics"][name]
            return f" · {escape(name)} {number(entry['value'])} on {split} {f'({_interval(entry)})' if _interval(entry) else ''}"
    return ""
