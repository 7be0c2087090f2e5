"""Figures as inline SVG, styled by the page: nothing is drawn outside of the markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Point = tuple[float, float]
WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 34
MOST_POINTS = 600


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``.

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


class Frame:
    """Axes with room for their labels; turns data into places on the figure."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], *, height: int = HEIGHT):
        self.height = height
        self.x, self.y = (
            (low, high) if high > low else (low - 0.5, low + 0.5) for low, high in (x, y)
        )

    def at(self, point: Point) -> Point:
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), self.height - BOTTOM - up * (
            self.height - TOP - BOTTOM
        )

    def line(self, points: Sequence[Point], style: str) -> str:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.at, points))
        return f'<polyline class="{style}" points="{places}"/>'

    def dots(self, points: Sequence[Point], style: str, radius: float = 3) -> str:
        return "".join(
            f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
            for x, y in map(self.at, points)
        )

    def bar(self, low: float, high: float, value: float) -> str:
        (left, top), (right, bottom) = self.at((low, value)), self.at((high, self.y[0]))
        size = f'width="{max(0.5, right - left - 1):.1f}" height="{max(0.0, bottom - top):.1f}"'
        return f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" {size}/>'

    def drawn(self, content: str, *, x_label: str, y_label: str, title: str) -> str:
        """The whole figure; ``title`` is for those who do not see it."""
        bottom = self.height - BOTTOM
        parts = [
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
        ]
        for value in ticks(*self.x):
            x, _ = self.at((value, self.y[0]))
            parts.append(
                f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{_tick(value)}</text>'
            )
        for value in ticks(*self.y):
            _, y = self.at((self.x[0], value))
            parts.append(
                f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            parts.append(
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
            )
        parts.append(
            f'<text x="{WIDTH - RIGHT}" y="{self.height - 4}" text-anchor="end">{escape(x_label)}</text>'
        )
        parts.append(f'<text x="{LEFT}" y="{self.height - 4}">↑ {escape(y_label)}</text>')
        return f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(title)}">{"".join(parts)}{content}</svg>'


def _tick(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10000 else f"{value:g}"


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Evenly chosen points where there are more than can be told apart, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def curves(lines: Sequence[Sequence[Point]], *, x_label: str, y_label: str, title: str) -> str:
    """One or two lines; the second of few points is drawn with dots."""
    points = [point for line in lines for point in line]
    ys = [y for _, y in points]
    frame = Frame(
        (min(x for x, _ in points), max(x for x, _ in points)), (min(ys), max(ys)), height=210
    )
    content = ""
    for style, line in zip(("", " second"), lines, strict=False):
        content += frame.line(thin(line), f"curve{style}")
        content += frame.dots(line, f"dot{style}") if len(line) <= 40 else ""
    return frame.drawn(content, x_label=x_label, y_label=y_label, title=title)


def reliability_plot(bins: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]] = ()) -> str:
    """Accuracy by confidence with the diagonal; behind it how many items each bin holds."""
    frame = Frame((0, 1), (0, 1), height=300)
    most = max(part["count"] for part in bins)
    content = "".join(
        frame.bar(part["low"], max(part["high"], part["low"]), 0.25 * part["count"] / most)
        for part in bins
    )
    content += frame.line([(0, 0), (1, 1)], "ideal")
    for style, curve in (("", bins), (" second", after)):
        points = [(part["confidence"], part["accuracy"]) for part in curve]
        content += (
            frame.line(points, f"curve{style}") + frame.dots(points, f"dot{style}")
            if points
            else ""
        )
    return frame.drawn(
        content, x_label="confidence", y_label="share that is right", title="reliability curve"
    )


def scatter(points: Sequence[Point]) -> str:
    """Predicted numbers over gold ones, with the diagonal."""
    both = [value for point in points for value in point]
    low, high = min(both), max(both)
    frame = Frame((low, high), (low, high), height=320)
    content = frame.line([(low, low), (high, high)], "ideal") + frame.dots(
        thin(sorted(points)), "haze", 2.5
    )
    return frame.drawn(
        content, x_label="gold", y_label="predicted", title="predicted over gold numbers"
    )


def histogram(values: Sequence[float], *, x_label: str, bins: int = 30) -> str:
    """How many values fall where."""
    low, high = min(values), max(values)
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / width))] += 1
    frame = Frame((low, low + bins * width), (0, max(counts)), height=200)
    content = "".join(
        frame.bar(low + i * width, low + (i + 1) * width, count)
        for i, count in enumerate(counts)
        if count
    )
    return frame.drawn(
        content, x_label=x_label, y_label="how many", title=f"distribution of {x_label}"
    )


def scale_of(entries: Sequence[Mapping[str, float | None]]) -> tuple[float, float]:
    """From the lowest to the highest end of some intervals, with a little room."""
    ends = [entry[end] for entry in entries for end in ("value", "low", "high")]
    known = [end for end in ends if end is not None] or [0.0]
    low, high = min(known), max(known)
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def interval_bar(
    entry: Mapping[str, float | None], scale: tuple[float, float], *, second: bool = False
) -> str:
    """A point with its interval on a common scale, as wide as there is room."""
    low, high = scale

    def place(value: float) -> str:
        return f"{100 * (value - low) / ((high - low) or 1):.2f}%"

    parts = ['<line class="rule" x1="0" x2="100%" y1="8" y2="8"/>']
    if entry["low"] is not None and entry["high"] is not None:
        parts.append(
            f'<line class="range" x1="{place(entry["low"])}" x2="{place(entry["high"])}" y1="8" y2="8"/>'
        )
    if entry["value"] is not None:
        parts.append(
            f'<circle class="dot{" second" if second else ""}" cx="{place(entry["value"])}" cy="8" r="4"/>'
        )
    return f'<svg aria-hidden="true">{"".join(parts)}</svg>'


def stacked_bar(parts: Sequence[tuple[str, int]], most: int) -> str:
    """Counts side by side, each with its class; ``most`` fills the width."""
    x, drawn = 0.0, []
    for style, count in parts:
        width = 100 * count / most if most else 0.0
        title = f"<title>{escape(style)}: {count}</title>"
        drawn.append(
            f'<rect class="k-{escape(style)}" x="{x:.2f}%" width="{width:.2f}%" y="2" height="12">{title}</rect>'
        )
        x += width
    return f'<svg role="img" aria-label="{escape(", ".join(f"{style} {count}" for style, count in parts))}">{"".join(drawn)}</svg>'
