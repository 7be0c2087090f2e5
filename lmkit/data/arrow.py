"""Python values as Arrow arrays, without pandas: ``pyarrow.array`` imports it, which takes longer than reading many a file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa


def array_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Texts (``large_string``), numbers, or lists of them, nested as deep as they are; None is null.

    >>> array_of([[1, 2], [], None, [3]], pa.list_(pa.int32())).to_pylist()
    [[1, 2], [], None, [3]]
    """
    there = None
    if None in values:
        there = pa.py_buffer(
            np.packbits([value is not None for value in values], bitorder="little")
        )
        empty: Any = [] if pa.types.is_list(kind) else "" if pa.types.is_large_string(kind) else 0
        values = [empty if value is None else value for value in values]
    if pa.types.is_list(kind):
        inner = array_of(list(itertools.chain.from_iterable(values)), kind.value_type)
        return pa.Array.from_buffers(
            kind, len(values), [there, _ends(values, np.int32)], children=[inner]
        )
    if pa.types.is_large_string(kind):
        texts = [value.encode() for value in values]
        return pa.Array.from_buffers(
            kind, len(texts), [there, _ends(texts, np.int64), pa.py_buffer(b"".join(texts))]
        )
    return numbers([*values], kind.to_pandas_dtype(), there)


def numbers(values: Any, dtype: Any, there: pa.Buffer | None = None) -> pa.Array:
    """Make an array of a list or NumPy array of numbers."""
    array = np.ascontiguousarray(values, dtype=dtype)
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(array.dtype), len(array), [there, pa.py_buffer(array)]
    )


def _ends(values: Sequence[Any], dtype: Any) -> pa.Buffer:
    ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
    if ends[-1] > np.iinfo(dtype).max:
        raise pa.ArrowCapacityError(
            f"{ends[-1]:,} values in the lists of one column are more than a batch can hold"
        )
    return pa.py_buffer(ends.astype(dtype, copy=False))


def batch_of(columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Columns of Python values as one batch."""
    return pa.RecordBatch.from_arrays(
        [array_of(columns[field.name], field.type) for field in schema], schema=schema
    )
