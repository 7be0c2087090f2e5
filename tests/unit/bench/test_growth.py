"""Growth: what is computed from the measurements, and the figure."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import growth
import pytest


def line(at: Any, seconds: float, work: float, memory: float = 1e8, what: str = "mlm") -> dict[str, Any]:
    return {"what": what, "at": at, "seconds": seconds, "work": work, "memory": memory, "weights": work}


FOUND = {
    "machine": {"cores": 2, "cpu": "a chip", "date": "2026-11-25"},
    "rows": [line(5000, 1.0, 5000), line(20000, 4.0, 20000), line(80000, 8.0, 80000, 1e8 + 3e6)],
    "model": [line("nano", 0.1, 1e6), line("mini", 2.0, 1e7)],
    "length": [line(64, 1.0, 10, what="clm"), line(1024, 2.0, 20, what="clm"), line(64, 1.0, 10), line(1024, 2.0, 40)],
}


def test_time_is_held_against_the_growth_of_the_work() -> None:
    assert growth.over_its_own(FOUND["model"]) == pytest.approx([1.0, 2.0])
    assert growth.over_its_own(FOUND["rows"]) == pytest.approx([1.0, 1.0, 0.5])


def test_a_row_more_takes_the_difference_of_the_ends() -> None:
    assert growth.bytes_each(FOUND["rows"]) == pytest.approx(40)
    assert "A row more takes 40 bytes for mlm" in growth.section(FOUND)


def test_every_series_is_a_part_of_the_table_and_two_panels_of_the_figure() -> None:
    assert growth.table(FOUND).count("\n") == 1 + 3 + 2 + 4
    assert "| rows, mlm | 80,000 | 8.00 | 8.0x | 16.0x | 0.50x | 103 MB |" in growth.table(FOUND)
    drawn = ElementTree.fromstring(growth.figure(FOUND))
    assert len(drawn.findall("{http://www.w3.org/2000/svg}svg")) == 8


def test_one_part_alone_can_be_shown() -> None:
    alone = {"machine": FOUND["machine"], "model": FOUND["model"]}
    assert "| model, mlm | nano |" in growth.section(alone)
    assert "A row more" not in growth.section(alone)
