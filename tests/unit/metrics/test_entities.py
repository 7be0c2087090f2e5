"""Entities beside one another."""

from __future__ import annotations

import pytest

from lmkit.metrics.entities import match_entities


@pytest.mark.parametrize(
    ("gold", "predicted", "kinds"),
    [
        ([(0, 2, "PER")], [(0, 2, "PER")], ["correct"]),
        ([(0, 2, "PER")], [(0, 2, "LOC")], ["type"]),
        ([(0, 2, "PER")], [(0, 1, "PER")], ["boundary"]),
        ([(0, 2, "PER")], [(1, 3, "LOC")], ["both"]),
        ([(0, 2, "PER")], [], ["missed"]),
        ([], [(0, 2, "PER")], ["spurious"]),
        (
            [(0, 2, "PER")],
            [(2, 3, "PER")],
            ["missed", "spurious"],
        ),  # neighbours have no word in common
        (
            [(0, 3, "PER")],
            [(0, 1, "LOC"), (2, 3, "PER")],
            ["boundary", "spurious"],
        ),  # the same type before the leftmost
        (
            [(0, 1, "PER"), (1, 2, "PER")],
            [(0, 2, "PER")],
            ["boundary", "missed"],
        ),  # one prediction answers for one entity
    ],
)
def test_every_entity_is_in_one_match(gold: list, predicted: list, kinds: list[str]) -> None:
    assert sorted(match.kind for match in match_entities(gold, predicted)) == kinds
