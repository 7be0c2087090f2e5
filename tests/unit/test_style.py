"""The measures of tests/style.py count what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import style

CODE = '''"""Two lines
of words."""

import os


@staticmethod
def outer(first, *, second):
    """Words."""

    def inner():  # a comment

        return os

    return [first for _ in range(3) if second]


class Thing:
    def method(self, a, b, c, d, e, f, g):
        return a if b else c
'''


@pytest.fixture
def source(tmp_path: Path) -> style.Source:
    (tmp_path / "thing.py").write_text(CODE)
    return style.read_sources(tmp_path)[0]


def test_lines_of_code_are_neither_blank_nor_in_docstrings(source: style.Source) -> None:
    outer, inner, method = source.functions
    assert len(source.code_lines) == 9
    assert [len(source.lines_of(function)) for function in (outer, inner, method)] == [5, 2, 2]
    assert outer.length == 8


def test_functions_are_named_with_what_is_around_them(source: style.Source) -> None:
    names = [function.place for function in source.functions]
    assert names == ["thing.py:outer", "thing.py:outer.inner", "thing.py:Thing.method"]
    assert [function.place for function in style.with_many_arguments([source], most=6)] == [
        "thing.py:Thing.method"
    ]
    assert [function.name for function in style.too_long([source], most=7)] == ["outer"]


def test_table_counts_statements_and_tokens(source: style.Source) -> None:
    table = style.table_of([source])
    statements = 10  # docstrings are statements, too
    assert table["comprehensions per 1,000 statements (40)"] == f"{1000 / statements:.1f}"
    assert table["conditionals per 1,000 statements (25)"] == f"{1000 / statements:.1f}"
    assert table["longest function (80)"] == "8, thing.py:outer"
    assert table["docstrings with an odd opening (0)"] == "0.0 %"


def test_trace_notes_what_ran_in_the_order_of_first_calls() -> None:
    from lmkit import errors
    from lmkit.errors import LmkitError

    with style.Trace() as trace:
        str(LmkitError("wrong", place="here"))
        errors.suggest("trian", ["train"])
    names = [function.name for function in trace.functions(style.read_sources())]
    assert names[0].startswith("LmkitError.")
    assert names.index("suggest") > 0
