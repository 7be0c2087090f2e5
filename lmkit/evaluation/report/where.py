"""Where the model fails: slices, labels, confusion, kinds of entity errors, calibration, loss by document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from lmkit.console import readable as number
from lmkit.evaluation.report import plots
from lmkit.metrics.entities import ERROR_KINDS
from lmkit.records import Record
from lmkit.tasks.answers import Answer

MOST_LABELS = 24  # of a confusion matrix
MOST_ROWS = 200


def where(
    found: Mapping[str, Any],
    analysis: Mapping[str, Any],
    records: Sequence[Record],
    answer: Answer,
    metric: str,
) -> str:
    """The section with all figures that the answer has."""
    parts = [
        _by_label(found),
        *(_slices(name, slices, metric) for name, slices in analysis["slices"].items()),
    ]
    parts.append(_entity_errors(analysis.get("entity_errors")))
    parts.append(_calibration(analysis.get("calibration")))
    if points := answer.points(records):
        parts.append(_figure(plots.scatter(points), "Predicted over gold numbers"))
    if answer.loss_unit:
        losses = [loss for record in records if not math.isnan(loss := record.loss)]
        if losses:
            caption = f"Loss by {answer.loss_unit}, nats a token"
            parts.append(_figure(plots.histogram(losses, x_label="loss"), caption))
    return f'<h2>Where it fails</h2><div class="grid">{"".join(filter(None, parts))}</div>{_confusion(analysis.get("confusion"))}'


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _slices(name: str, slices: Sequence[Mapping[str, Any]], metric: str) -> str:
    entries = [part["metrics"][metric] for part in slices if metric in part["metrics"]]
    if len(entries) < 2:
        return ""
    scale = plots.scale_of(entries)
    rows = "".join(
        f'<tr><td>{escape(str(part["slice"]))} <span class="sub">{part["examples"]:,}</span></td>'
        f'<td class="plot">{plots.interval_bar(entry, scale)}</td><td class="n">{number(entry["value"])}</td></tr>'
        for part, entry in zip(slices, entries, strict=True)
    )
    what = {
        "length": "length in words",
        "unknown": "share of unknown tokens",
        "fragmentation": "share of fragmented words",
    }
    title = f"{escape(metric)} by {escape(what.get(name, name))}"
    return f'<figure><h3>{title}</h3><table class="wide">{rows}</table></figure>'


def _by_label(found: Mapping[str, Any]) -> str:
    labels = found.get("by_label") or {}
    if not labels:
        return ""
    names = ("precision", "recall", "f1")
    shown = sorted(labels.items(), key=lambda item: -item[1]["support"])[:MOST_ROWS]
    rows = "".join(
        f"<tr><td>{escape(label)}</td>"
        + "".join(f'<td class="n">{number(row.get(name), 2)}</td>' for name in names)
        + f'<td class="n">{row["support"]:,.0f}</td></tr>'
        for label, row in shown
    )
    head = "<th>label</th>" + "".join(f'<th class="n">{name}</th>' for name in (*names, "rows"))
    return f'<figure><h3>By label</h3><div class="scroll"><table class="wide"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></figure>'


def _entity_errors(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    kinds = ("correct", *ERROR_KINDS)
    by_type = sorted(found["by_type"].items(), key=lambda item: -sum(item[1].values()))[
        :MOST_LABELS
    ]
    most = max(sum(counts.values()) for _, counts in by_type) if by_type else 0
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="plot">{plots.stacked_bar([(kind, counts[kind]) for kind in kinds if counts[kind]], most)}</td></tr>'
        for name, counts in by_type
    )
    legend = "".join(
        f'<span><i class="k-{kind}"></i>'
        + (f'<a href="#kind={kind}">{kind}</a>' if kind != "correct" else kind)
        + f" {found[kind]:,}</span>"
        for kind in kinds
    )
    return f'<figure><h3>Entities, and how they are wrong</h3><div class="legend">{legend}</div><table class="wide">{rows}</table><figcaption>type: the right words, another type; boundary: some of the words, the right type; both: some of the words, another type</figcaption></figure>'


def _calibration(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    after = found.get("temperature")
    drawing = plots.reliability_plot(found["bins"], after["after"]["bins"] if after else ())
    brier = f", Brier score {number(found.get('brier', found.get('brier_top')))}"
    caption = f"Confidence and accuracy of {found['count']:,} {found['unit']}: calibration error {number(found['ece'])} (equal mass: {number(found['ece_equal_mass'])}){brier}"
    if after:
        caption += f". Red: at temperature {number(after['temperature'])}, calibration error {number(after['after']['ece'])}"
    return _figure(f"<h3>Is it as sure as it is right?</h3>{drawing}", caption)


def _confusion(found: Mapping[str, Any] | None) -> str:
    """A heat map; with many labels of those that are most often taken for another, each cell a link to its errors."""
    if found is None or len(found["labels"]) < 2:
        return ""
    labels, counts = found["labels"], found["counts"]
    size = range(len(labels))
    wrong = {i: sum(counts[i][j] + counts[j][i] for j in size if i != j) for i in size}
    kept = sorted(sorted(size, key=lambda i: -wrong[i])[:MOST_LABELS])
    head = "".join(f"""<th title="{escape(labels[j])}">{escape(labels[j])}</th>""" for j in kept)
    rows = "".join(
        f"""<tr><th title="{escape(labels[i])}">{escape(labels[i])}</th>"""
        + "".join(_cell(labels, counts, i, j, sum(counts[i])) for j in kept)
        + "</tr>"
        for i in kept
    )
    note = (
        f" The {len(kept)} of {len(labels)} labels that are most often confused."
        if len(kept) < len(labels)
        else ""
    )
    return (
        f'<h3>Confusion</h3><p class="note">Rows: gold. Columns: predicted. A number leads to its errors.{note}</p>'
        f'<div class="scroll"><table class="confusion"><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _cell(
    labels: Sequence[str], counts: Sequence[Sequence[int]], i: int, j: int, total: int
) -> str:
    count = counts[i][j]
    style = f'style="--v:{count / total if total else 0:.3f}"'
    if i == j or not count:
        return f"<td><span {style}>{count or '·'}</span></td>"
    link = f"#gold={quote(labels[i], safe='')}&amp;pred={quote(labels[j], safe='')}"
    return f'<td class="off"><a {style} href="{link}">{count}</a></td>'
