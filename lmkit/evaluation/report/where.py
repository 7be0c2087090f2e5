"""Where the model fails: slices, labels, confusion, kinds of entity errors, calibration, loss by document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from lmkit.console import readable
from lmkit.evaluation.analysis import Analysis
from lmkit.evaluation.calibration import Calibration
from lmkit.evaluation.mistakes import Confusion
from lmkit.evaluation.report import plots
from lmkit.evaluation.report.plots import Figure, IntervalBar, StackedPart
from lmkit.evaluation.slices import Slice
from lmkit.metrics.entities import ERROR_KINDS, ErrorCounts
from lmkit.records import Interval, Metrics, Record
from lmkit.tasks.answers import Answer

MOST_LABELS = 24  # of a confusion matrix
MOST_ROWS = 200
NAMES = {
    "length": "length in words",
    "unknown": "share of unknown tokens",
    "fragmentation": "share of fragmented words",
}


@dataclass(frozen=True)
class SliceLine:
    slice: Slice
    interval: Interval
    bar: IntervalBar


@dataclass(frozen=True)
class SliceFigure:
    """The slices of one name; ``what`` they are of."""

    what: str
    lines: list[SliceLine]


@dataclass(frozen=True)
class Errors:
    """Kinds of entity errors with their counts, in all and as a bar by type."""

    total: list[tuple[str, int]]
    by_type: list[tuple[str, list[StackedPart]]]


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion table; ``link`` leads to the rows it counts, where they are errors."""

    count: int
    share: float
    link: str


@dataclass(frozen=True)
class ConfusionRow:
    label: str
    cells: list[Cell]


@dataclass(frozen=True)
class ConfusionTable:
    """A heat map; of many labels those that are most often taken for another, ``of`` all."""

    labels: list[str]
    rows: list[ConfusionRow]
    of: int


def where(
    metrics: Metrics, analysis: Analysis, records: Sequence[Record], answer: Answer, headline: str
) -> dict[str, object]:
    """Return what the template of the section shows: all figures that the answer has."""
    by_label = sorted(metrics.by_label.items(), key=lambda item: -item[1]["support"])
    figures = [slice_figure(name, part, headline) for name, part in analysis.slices.items()]
    return {
        "by_label": by_label[:MOST_ROWS],
        "slice_figures": [figure for figure in figures if len(figure.lines) > 1],
        "errors": errors_of(analysis.entity_errors),
        "calibration": calibration_figure(analysis.calibration),
        "distributions": distributions(records, answer),
        "confusion": confusion_table(analysis.confusion),
    }


def slice_figure(name: str, slices: Sequence[Slice], headline: str) -> SliceFigure:
    """Put the headline metric of the slices on one scale."""
    measured = [part for part in slices if headline in part.metrics]
    intervals = [part.metrics[headline] for part in measured]
    scale = plots.scale_of(intervals)
    lines = [
        SliceLine(part, interval, plots.interval_bar(interval, scale))
        for part, interval in zip(measured, intervals, strict=True)
    ]
    return SliceFigure(NAMES.get(name, name), lines)


def errors_of(counts: ErrorCounts | None) -> Errors | None:
    """Put the kinds of errors of every type on one scale, the most frequent types first."""
    if counts is None:
        return None
    kinds = ("correct", *ERROR_KINDS)
    by_type = sorted(counts.by_type.items(), key=lambda item: -sum(item[1].values()))
    shown = by_type[:MOST_LABELS]
    most = max((sum(of_type.values()) for _, of_type in shown), default=0)
    bars = []
    for name, of_type in shown:
        present = [(kind, of_type[kind]) for kind in kinds if of_type[kind]]
        bars.append((name, plots.stacked_bar(present, most)))
    return Errors([(kind, counts.total[kind]) for kind in kinds], bars)


def calibration_figure(calibration: Calibration | None) -> Figure | None:
    """Draw the reliability curve, and beside it that at a fitted temperature."""
    if calibration is None:
        return None
    fitted = calibration.temperature
    drawing = plots.reliability_plot(calibration.bins, fitted.after.bins if fitted else ())
    brier = calibration.brier_top if calibration.brier is None else calibration.brier
    caption = (
        f"Confidence and accuracy of {calibration.count:,} {calibration.unit}: "
        f"calibration error {readable(calibration.ece)} (equal mass: {readable(calibration.ece_equal_mass)})"
        f", Brier score {readable(brier)}"
    )
    if fitted:
        caption += (
            f". Red: at temperature {readable(fitted.temperature)}, "
            f"calibration error {readable(fitted.after.ece)}"
        )
    return Figure(drawing, caption)


def distributions(records: Sequence[Record], answer: Answer) -> list[Figure]:
    """Draw predicted over gold numbers, and how the loss is distributed, where they tell something."""
    figures = []
    if points := answer.points(records):
        figures.append(Figure(plots.scatter(points), "Predicted over gold numbers"))
    if answer.loss_unit:
        losses = [loss for record in records if not math.isnan(loss := record.loss)]
        if losses:
            caption = f"Loss by {answer.loss_unit}, nats a token"
            figures.append(Figure(plots.histogram(losses, x_label="loss"), caption))
    return figures


def confusion_table(confusion: Confusion | None) -> ConfusionTable | None:
    """Show the labels that are most often taken for another; a cell leads to its errors."""
    if confusion is None or len(confusion.labels) < 2:
        return None
    labels, counts = confusion.labels, confusion.counts
    size = range(len(labels))
    wrong = {i: sum(counts[i][j] + counts[j][i] for j in size if i != j) for i in size}
    shown = sorted(sorted(size, key=lambda i: -wrong[i])[:MOST_LABELS])
    rows = [
        ConfusionRow(labels[i], [_cell(confusion, gold=i, predicted=j) for j in shown])
        for i in shown
    ]
    return ConfusionTable([labels[i] for i in shown], rows, len(labels))


def _cell(confusion: Confusion, *, gold: int, predicted: int) -> Cell:
    count, total = confusion.counts[gold][predicted], sum(confusion.counts[gold])
    link = ""
    if gold != predicted and count:
        names = [quote(confusion.labels[number], safe="") for number in (gold, predicted)]
        link = f"#gold={names[0]}&pred={names[1]}"
    return Cell(count, count / total if total else 0.0, link)
