"""Jinja2, and what the templates may call; everything but the report's own style and script is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lmkit.console import readable
from lmkit.evaluation.report.plots import Drawing
from lmkit.records import Interval
from lmkit.tasks.answers import excerpt

TEMPLATES = Path(__file__).with_name("templates")


@cache
def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"readable": readable, "bounds": bounds, "excerpt": excerpt}
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return made


def render(template: str, values: dict[str, object]) -> str:
    """Fill a template of the report."""
    return environment().get_template(template).render(values)


def svg(drawing: Drawing) -> str:
    """Return a drawing as SVG that the page's style, or another's, is made for."""
    figures = environment().get_template("figures.html").module
    return str(figures.drawing(drawing)).strip()  # type: ignore[attr-defined]


def read_trusted(name: str) -> Markup:
    """Read a file of the report that stands in the page as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def bounds(interval: Interval) -> str:
    """Show the bounds of an interval; nothing where there are none."""
    if interval.low is None:
        return ""
    return f"{readable(interval.low)} … {readable(interval.high)}"
