"""Arrow arrays are what pyarrow makes of the same values."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lmkit.data.arrow import _ends, array_of, numbers

TEXT = pa.large_string()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, -2, 3], pa.int32()),
        ([2**40, None, 0], pa.int64()),
        ([0.5, None, float("inf")], pa.float64()),
        (["", "añ语🙂", None, "b\0c"], TEXT),
        ([[1], [], None, [2, 3]], pa.list_(pa.int32())),
        ([["a", None], None, [], ["b", ""]], pa.list_(TEXT)),
        ([[[0, 2], [3, 4]], [], None, [[5, 6]]], pa.list_(pa.list_(pa.int64()))),
        ([None] * 9, pa.list_(TEXT)),
        ([], pa.list_(pa.int32())),
    ],
)
def test_arrays_are_those_of_pyarrow(values: list[Any], kind: pa.DataType) -> None:
    found = array_of(values, kind)
    found.validate(full=True)
    assert found.equals(pa.array(values, type=kind))


def test_lists_that_a_batch_cannot_hold_are_refused_and_not_counted_from_the_start_again() -> None:
    values = [range(2**30)] * 2
    assert np.frombuffer(_ends(values, np.int64), np.int64).tolist() == [0, 2**30, 2**31]
    with pytest.raises(pa.ArrowCapacityError, match="2,147,483,648"):
        _ends(values, np.int32)


def test_numbers_may_be_a_view() -> None:
    assert numbers(np.arange(10)[::3], np.int32).to_pylist() == [0, 3, 6, 9]


def test_pieces_are_written_and_read_without_pandas_or_datasets(tmp_path: Path) -> None:
    """They take as long to import as a small model takes to load."""
    code = """
import sys
from pathlib import Path
from lmkit.data import rows
from lmkit.data.pieces import Pieces, write_pieces
columns = {"input_ids": [[1, 2], [], [3]], "tags": [[], [], []], "row": [0, 1, 2], "weight": [1.0, 0.5, 0.5]}
write_pieces(Path(sys.argv[1]), [columns, columns])
pieces = Pieces(Path(sys.argv[1]))
print(len(pieces), pieces.take([5, 0]), pieces[-2:] == pieces[1:3], pieces.column("row").tolist())
print(sorted({"pandas", "datasets"} & set(sys.modules)))
"""
    told = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "p.arrow"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    taken = [
        {"input_ids": [3], "tags": [], "row": 2, "weight": 0.5},
        {"input_ids": [1, 2], "tags": [], "row": 0, "weight": 1.0},
    ]
    assert told == f"6 {taken} True [0, 1, 2, 0, 1, 2]\n[]\n"
