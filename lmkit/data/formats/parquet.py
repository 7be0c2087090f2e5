"""Parquet and Arrow: files of columns, in the forms in which the datasets library writes them, too."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lmkit.data.formats.base import COMPRESSIONS, Format, Layout, NumberedRows, open_file
from lmkit.data.row import short_path
from lmkit.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 256
ClassNames = dict[str, list[str]]  # column -> the names that its numbers stand for


def _read_columns(path: Path, layout: Layout, *, kind: str) -> NumberedRows:
    import pyarrow as pa

    batches_of = _parquet_batches if kind == "parquet" else _arrow_batches
    with open_file(path) as opened, tempfile.TemporaryFile() as unpacked:
        file: Any = opened
        if path.suffix.lower() in COMPRESSIONS:  # these formats are read from their end
            while block := opened.read(1 << 20):
                unpacked.write(block)
            file = unpacked
        file.seek(0)
        try:
            schema, batches = batches_of(file)
            names = _class_names(schema.metadata or {})
            yield from enumerate(_rows(batches, names), 1)
        except pa.ArrowException as error:
            problem = f"broken, or not {kind} data: {str(error).splitlines()[0]}"
            raise DataError(problem, place=short_path(path), remedy="write it again") from error


def _parquet_batches(file: IO[bytes]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    import pyarrow.parquet as pq

    source = pq.ParquetFile(file)
    return source.schema_arrow, source.iter_batches(batch_size=BATCH_ROWS)


def _arrow_batches(file: IO[bytes]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    import pyarrow as pa

    is_file = file.read(6) == b"ARROW1"  # else a stream
    file.seek(0)
    if not is_file:
        stream = pa.ipc.open_stream(file)
        return stream.schema, iter(stream)
    reader = pa.ipc.open_file(file)
    return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))


def _rows(batches: Iterator[pa.RecordBatch], names: ClassNames) -> Iterator[dict[str, Any]]:
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for row in batch.slice(start, BATCH_ROWS).to_pylist():
                yield {column: _named(value, names.get(column)) for column, value in row.items()}


def _class_names(metadata: dict[bytes, bytes]) -> ClassNames:
    """Read the names of datasets' ClassLabel columns, which hold numbers, from the schema's metadata."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = {}
    for column, feature in features.items():
        inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            names[column] = inner["names"]
    return names


def _named(value: Any, names: list[str] | None) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if 0 <= value < len(names) else None  # -1: no label


PARQUET = Format("parquet", (".parquet",), partial(_read_columns, kind="parquet"))
ARROW = Format("arrow", (".arrow", ".feather"), partial(_read_columns, kind="arrow"))
