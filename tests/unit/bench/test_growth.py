"""Growth: what is computed from the measurements, and the figure."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import growth
import pytest


def line(
    at: Any, seconds: float, work: float, memory: float = 1e8, what: str = "mlm"
) -> dict[str, Any]:
    return {
        "what": what,
        "at": at,
        "seconds": seconds,
        "work": work,
        "memory": memory,
        "weights": work,
    }


FOUND = {
    "machines": {
        part: {"cores": 2, "cpu": "a chip", "date": "2026-11-25"}
        for part in ("rows", "model", "length")
    },
    "rows": [line(5000, 1.0, 5000), line(20000, 4.0, 20000), line(80000, 8.0, 80000, 1e8 + 3e6)],
    "model": [line("nano", 0.1, 1e6), line("mini", 2.0, 1e7)],
    "length": [
        line(64, 1.0, 10, what="clm"),
        line(1024, 2.0, 20, what="clm"),
        line(64, 1.0, 10),
        line(1024, 2.0, 40),
    ],
}


def test_what_more_work_takes_is_held_against_what_it_took_first() -> None:
    assert growth.slopes(FOUND["model"]) == [None, 1.0]
    assert growth.slopes(FOUND["rows"]) == [None, 1.0, pytest.approx(4 / 60 * 15 / 3)]


def test_a_start_that_all_lines_have_hides_no_growth() -> None:
    """Seconds of 100 + work**2: against the growth of the work they would seem to shrink."""
    lines = [line(work, 100 + work**2, work) for work in (1, 2, 4)]
    assert growth.slopes(lines) == [None, 1.0, 2.0]


def test_of_steps_without_more_work_or_seconds_nothing_is_said() -> None:
    assert growth.slopes([line(1, 1.0, 10)]) == [None]
    assert growth.slopes([line(1, 1.0, 10), line(2, 2.0, 20), line(3, 2.0, 20)]) == [
        None,
        1.0,
        None,
    ]
    assert growth.slopes([line(1, 2.0, 10), line(2, 1.0, 20), line(3, 2.0, 30)]) == [
        None,
        None,
        None,
    ]


def test_a_row_more_takes_the_difference_of_the_ends() -> None:
    assert growth.bytes_each(FOUND["rows"]) == pytest.approx(40)
    assert "A row more takes 40 bytes for mlm" in growth.section(FOUND)


def test_every_series_is_a_part_of_the_table_and_two_panels_of_the_figure() -> None:
    assert growth.table(FOUND).count("\n") == 1 + 3 + 2 + 4
    assert "| rows, mlm | 80,000 | 8.00 | 8.0x | 16.0x | 0.33x | 103 MB |" in growth.table(FOUND)
    drawn = ElementTree.fromstring(growth.figure(FOUND))
    assert len(drawn.findall("{http://www.w3.org/2000/svg}svg")) == 8


def test_one_part_alone_can_be_shown() -> None:
    alone = {"machines": FOUND["machines"], "model": FOUND["model"]}
    assert "| model, mlm | nano |" in growth.section(alone)
    assert "A row more" not in growth.section(alone)


def test_parts_of_several_machines_say_which_is_whose() -> None:
    """One may be measured again, elsewhere."""
    later = {"cores": 4, "cpu": "another", "date": "2026-11-26"}
    found = FOUND | {"machine": FOUND["machines"]["rows"], "machines": {"length": later}}
    said = growth.section(found)
    assert (
        "on 2 cores (a chip), 2026-11-25 (rows, model) and 4 cores (another), 2026-11-26 (length);"
        in said
    )
