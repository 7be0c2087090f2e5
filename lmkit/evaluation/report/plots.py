"""Figures: where lines, dots and bars lie; templates/figures.html draws them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lmkit.evaluation.calibration import Bin
from lmkit.records import Interval

Point = tuple[float, float]
WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 34
MOST_POINTS = 600


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers from ``low`` to ``high``.

    >>> ticks(0, 0.9)
    [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    if high <= low:
        return [low]
    rough = (high - low) / most
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Polyline:
    kind: ClassVar[str] = "line"
    points: list[Point]
    style: str


@dataclass(frozen=True)
class Dots:
    kind: ClassVar[str] = "dots"
    points: list[Point]
    style: str
    radius: float


@dataclass(frozen=True)
class Bar:
    kind: ClassVar[str] = "bar"
    x: float
    y: float
    width: float
    height: float


Shape = Polyline | Dots | Bar


@dataclass(frozen=True)
class Drawing:
    """Axes with their ticks as (place, text), and shapes; ``title`` is for those who do not see it."""

    height: int
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    shapes: list[Shape]
    x_label: str
    y_label: str
    title: str
    width: int = WIDTH
    left: int = LEFT
    right: int = WIDTH - RIGHT

    @property
    def bottom(self) -> int:
        return self.height - BOTTOM


@dataclass(frozen=True)
class Figure:
    """A drawing with what stands under it."""

    drawing: Drawing
    caption: str


class Frame:
    """Axes with room for their labels; turns data into places on the figure."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], *, height: int = HEIGHT):
        self.height = height
        self.x, self.y = _widened(*x), _widened(*y)

    def at(self, point: Point) -> Point:
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        room = self.height - TOP - BOTTOM
        return LEFT + across * (WIDTH - LEFT - RIGHT), self.height - BOTTOM - up * room

    def line(self, points: Sequence[Point], style: str) -> Polyline:
        return Polyline([self.at(point) for point in points], style)

    def dots(self, points: Sequence[Point], style: str, radius: float = 3) -> Dots:
        return Dots([self.at(point) for point in points], style, radius)

    def bar(self, low: float, high: float, value: float) -> Bar:
        (left, top), (right, bottom) = self.at((low, value)), self.at((high, self.y[0]))
        return Bar(left, top, max(0.5, right - left - 1), max(0.0, bottom - top))

    def drawn(self, shapes: list[Shape], *, x_label: str, y_label: str, title: str) -> Drawing:
        """Return the whole figure; ``title`` is for those who do not see it."""
        return Drawing(
            self.height,
            [(self.at((value, self.y[0]))[0], _tick(value)) for value in ticks(*self.x)],
            [(self.at((self.x[0], value))[1], _tick(value)) for value in ticks(*self.y)],
            shapes,
            x_label,
            y_label,
            title,
        )


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _tick(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10000 else f"{value:g}"


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Choose points evenly where there are more than can be told apart, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def curves(lines: Sequence[Sequence[Point]], *, x_label: str, y_label: str, title: str) -> Drawing:
    """Draw one or two lines; the second of few points is drawn with dots."""
    points = [point for line in lines for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    frame = Frame((min(xs), max(xs)), (min(ys), max(ys)), height=210)
    shapes: list[Shape] = []
    for style, line in zip(("", " second"), lines, strict=False):
        shapes.append(frame.line(thin(line), f"curve{style}"))
        if len(line) <= 40:
            shapes.append(frame.dots(line, f"dot{style}"))
    return frame.drawn(shapes, x_label=x_label, y_label=y_label, title=title)


def reliability_plot(bins: Sequence[Bin], after: Sequence[Bin] = ()) -> Drawing:
    """Draw accuracy by confidence with the diagonal; behind it how many items each bin holds."""
    frame = Frame((0, 1), (0, 1), height=300)
    most = max(part.count for part in bins)
    shapes: list[Shape] = [
        frame.bar(part.low, max(part.high, part.low), 0.25 * part.count / most) for part in bins
    ]
    shapes.append(frame.line([(0, 0), (1, 1)], "ideal"))
    for style, curve in (("", bins), (" second", after)):
        points = [(part.confidence, part.accuracy) for part in curve]
        if points:
            shapes += [frame.line(points, f"curve{style}"), frame.dots(points, f"dot{style}")]
    return frame.drawn(
        shapes, x_label="confidence", y_label="share that is right", title="reliability curve"
    )


def scatter(points: Sequence[Point]) -> Drawing:
    """Draw predicted numbers over gold ones, with the diagonal."""
    both = [value for point in points for value in point]
    low, high = min(both), max(both)
    frame = Frame((low, high), (low, high), height=320)
    shapes: list[Shape] = [
        frame.line([(low, low), (high, high)], "ideal"),
        frame.dots(thin(sorted(points)), "haze", 2.5),
    ]
    return frame.drawn(
        shapes, x_label="gold", y_label="predicted", title="predicted over gold numbers"
    )


def histogram(values: Sequence[float], *, x_label: str, bins: int = 30) -> Drawing:
    """Draw how many values fall where."""
    low, high = min(values), max(values)
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / width))] += 1
    frame = Frame((low, low + bins * width), (0, max(counts)), height=200)
    shapes: list[Shape] = [
        frame.bar(low + i * width, low + (i + 1) * width, count)
        for i, count in enumerate(counts)
        if count
    ]
    return frame.drawn(
        shapes, x_label=x_label, y_label="how many", title=f"distribution of {x_label}"
    )


@dataclass(frozen=True)
class IntervalBar:
    """A point with its interval, in hundredths of the width there is."""

    value: float | None
    low: float | None
    high: float | None
    is_second: bool


def scale_of(intervals: Sequence[Interval]) -> tuple[float, float]:
    """Return the scale from the lowest to the highest end of some intervals, with a little room."""
    ends = [end for interval in intervals for end in (interval.value, interval.low, interval.high)]
    numbers = [end for end in ends if end is not None and math.isfinite(end)] or [0.0]
    low, high = min(numbers), max(numbers)
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def interval_bar(
    interval: Interval, scale: tuple[float, float], *, is_second: bool = False
) -> IntervalBar:
    """Place a point with its interval on a common scale."""
    low, high = scale

    def place(value: float | None) -> float | None:
        if value is None or not math.isfinite(value):
            return None
        return 100 * (value - low) / ((high - low) or 1)

    ends = place(interval.low), place(interval.high)
    if None in ends:
        ends = None, None
    return IntervalBar(place(interval.value), *ends, is_second)


@dataclass(frozen=True)
class StackedPart:
    """A part of a stacked bar, in hundredths of the width there is; ``style`` is its class."""

    style: str
    count: int
    x: float
    width: float


def stacked_bar(parts: Sequence[tuple[str, int]], most: int) -> list[StackedPart]:
    """Place counts side by side; ``most`` fills the width."""
    x, placed = 0.0, []
    for style, count in parts:
        width = 100 * count / most if most else 0.0
        placed.append(StackedPart(style, count, x, width))
        x += width
    return placed
