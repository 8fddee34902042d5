"""Turns typed Arrow columns into text, as a person would write the values; nested values become JSON text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from executor_adapter.config import Format
from executor_adapter.pipeline.errors import data_error
from executor_adapter.pipeline.job_log import log, progress
from executor_adapter.pipeline.sources.landing import Landing, Window, receiving
from executor_adapter.pipeline.text_rows import BATCH_ROWS

MAX_COLUMNS = 2_000
"""Columns of a table. With more, and in few megabytes of a file, reading takes more memory than a job may have."""


def read_parquet(path: Path, name: str, format: Format) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file as text.

    Raises:
        DataCollectionException: DATA_ERROR, it is not Parquet, or has two columns of the same name.
    """
    try:
        with pq.ParquetFile(path) as file:
            check_names(file.schema_arrow.names, name)
            for batch in file.iter_batches(BATCH_ROWS):
                yield as_text(batch)
    except pa.ArrowException as error:
        raise data_error(f"{name} is not Parquet: {error}") from error


def check_names(names: Iterable[str], name: str) -> None:
    """Refuse columns that have the same name, since one would take the place of the other, and very many.

    Raises:
        DataCollectionException: DATA_ERROR.
    """
    found = Counter(names)
    wrong = [f"the column {each!r} is there twice: name each column once" for each, times in found.items() if times > 1]
    if len(found) > MAX_COLUMNS:
        wrong.append(f"it has {len(found):,} columns, and {MAX_COLUMNS:,} are read at most: name those that you need")
    if wrong:
        raise data_error(f"{name}: {wrong[0]}")


def as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch with all its columns as text."""
    return pa.RecordBatch.from_arrays([_as_text(column) for column in batch.columns], names=batch.schema.names)


def text_array(values: Iterable[Any]) -> pa.Array:
    """Return Python values as an array of text; None is null."""
    return pa.array([None if each is None else value_text(each) for each in values], pa.string())


def batch_of(rows: Sequence[Mapping[str, Any]], array: Callable[[list[Any]], pa.Array]) -> pa.RecordBatch:
    """Return rows as columns, of each of which `array` makes text; a key that a row lacks is None in it."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [array([row.get(name) for row in rows]) for name in names]
    return pa.RecordBatch.from_arrays(columns, names=[str(name) for name in names])


def land_batches(
    root: Path, tool_name: str, table: str, window: Window, asked: Any, batches: Iterable[pa.RecordBatch], origin: str
) -> Landing:
    """Land batches of text, a Parquet file each, for sources that give no bytes.

    Args:
        root: the folder of the lake.
        tool_name: the name of the tool.
        table: the table.
        window: the window.
        asked: what identifies the rows that were asked for, as JSON knows it.
        batches: the rows.
        origin: what they are of, for people.
    """
    fingerprint, done = hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest(), 0
    with receiving(root, tool_name, table, window, fingerprint=fingerprint) as receiver:
        receiver.restart()
        for batch in islice(batches, 1 if window.is_sample else None):
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_batches([batch]), buffer, compression="zstd")

            def inspect(_: Path, rows: int = batch.num_rows) -> tuple[int, dict[str, Any]]:
                return rows, {}

            receiver.add(".parquet", [buffer.getvalue()], origin=origin, inspect=inspect)
            done += batch.num_rows
            progress(done, None, "rows")
    log("%s/%s %s: %d rows", tool_name, table, window.name, done)
    return receiver.landing


def _as_text(column: pa.Array) -> pa.Array:
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _as_text(column.storage)
    if pa.types.is_dictionary(kind):
        return _as_text(column.dictionary_decode())
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.string())
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return text_array(column.to_pylist())
    return column.cast(pa.string())


def value_text(value: Any) -> str:
    """Return a Python value as text: times in ISO 8601, bytes as base64, lists and mappings as JSON."""
    kind = type(value)
    if kind is str:
        return str(value)
    if kind is int or kind is float:
        return repr(value)
    if kind is bool:
        return "true" if value else "false"
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=value_text)
    return str(value)
