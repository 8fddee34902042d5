"""Reads landed files as rows of text, whatever they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from executor_adapter.config import Format
from executor_adapter.pipeline.disk import TEMPORARY, checksum_of, explained
from executor_adapter.pipeline.errors import configuration_error, data_error
from executor_adapter.pipeline.lake.stored import reading
from executor_adapter.pipeline.sources.csv_rows import CsvText
from executor_adapter.pipeline.sources.json_rows import count_json, read_json, read_ndjson
from executor_adapter.pipeline.sources.landing import Landing
from executor_adapter.pipeline.sources.unpacking import MAX_UNPACKED, as_utf8, unpacked
from executor_adapter.pipeline.text_rows import BATCH_ROWS, OnRejects, Text, as_text, check_names, connected, together

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "json",
    ".parquet": "parquet",
}
"""What files are by their suffix; in an archive, by the suffix of the file in it."""


def read_rows(
    landing: Landing, format: Format, on_rejects: OnRejects, max_bytes: int = MAX_UNPACKED
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all files of a landing as batches of text columns, in their order: see `read_texts`."""
    check_content(landing)
    with connected(landing.folder / f"{TEMPORARY}duckdb") as connection:
        for text in read_texts(landing, format, on_rejects, max_bytes):
            for batch in text.select(connection, lambda source: f"FROM {source}"):
                yield pa.RecordBatch.from_arrays(batch.columns, names=list(text.names))


def read_texts(
    landing: Landing, format: Format, on_rejects: OnRejects, max_bytes: int = MAX_UNPACKED
) -> Iterator[Text]:
    """Yield the rows of all files of a landing, in their order; each is to be read before the next one is asked for.

    Args:
        landing: what was received.
        format: how its bytes become rows.
        on_rejects: is given what is not a row, in batches.
        max_bytes: bytes of an unpacked file, at most.

    Raises:
        DataCollectionException: DATA_ERROR, a file is broken, or not as it was received; CONFIGURATION_ERROR, a setting
            is missing or wrong.
    """
    return _texts_of(_parts(landing, format, on_rejects, max_bytes))


def _texts_of(parts: Iterator[Any]) -> Iterator[Text]:
    for are_batches, some in groupby(parts, lambda each: isinstance(each, pa.RecordBatch)):
        if are_batches:
            yield from together(some)
        else:
            yield from some


def _parts(landing: Landing, format: Format, on_rejects: OnRejects, max_bytes: int) -> Iterator[Any]:
    for file in landing.files:
        path = landing.path_of(file)
        if file.rows == 0:
            continue
        encoding = format.encoding or file.details.get("encoding")
        with unpacked(path, max_bytes=max_bytes) as (plain, inside):
            kind = format.format or _format_of(inside)
            delimiter = format.delimiter or ("\t" if inside.lower().endswith(".tsv") else None)
            given = {"encoding": encoding, "format": kind, "delimiter": delimiter}
            yield from _read(
                plain, file.origin, format.model_copy(update=given), on_rejects, file.details.get("columns") or {}
            )


def _read(path: Path, name: str, format: Format, on_rejects: OnRejects, added: Mapping[str, str]) -> Iterator[Any]:
    """Yield CSV as `CsvText`, and batches of all else."""
    match format.format:
        case "csv":
            with as_utf8(path, format.encoding) as (text, encoding):
                yield CsvText(text, name, format, encoding, on_rejects, added)
            return
        case "ndjson":
            batches = read_ndjson(path, name, format, on_rejects)
        case "json":
            batches = read_json(path, name, format, on_rejects)
        case _:
            batches = _read_parquet(path, name)
    for batch in batches:
        yield _with_columns(batch, added)


def count_rows(path: Path, name: str, format: Format) -> tuple[int, Any]:
    """Return how many rows and rejects a plain file has, and the JSON document that it is: None for anything else.

    Raises:
        DataCollectionException: as `read_rows`.
    """
    if format.format == "json":
        return count_json(path, name, format)
    if path.stat().st_size == 0:
        return 0, None
    found: list[int] = []
    with connected(path.parent / f"{TEMPORARY}duckdb") as connection:
        for text in _texts_of(_read(path, name, format, lambda some: found.append(some.num_rows), {})):
            batches = text.select(connection, lambda source: f"SELECT 1 FROM {source}")
            found.extend(batch.num_rows for batch in batches)
    return sum(found), None


def _read_parquet(path: Path, name: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file as text.

    Raises:
        DataCollectionException: DATA_ERROR, it is not Parquet, or has two columns of the same name.
    """
    with reading(path, lambda _, why: data_error(f"{name} is not Parquet: {why}")), pq.ParquetFile(path) as file:
        check_names(file.schema_arrow.names, name)
        for batch in file.iter_batches(BATCH_ROWS):
            yield as_text(batch)


def check_content(landing: Landing) -> None:
    """Refuse a landing whose files are not as they were received.

    Raises:
        DataCollectionException: DATA_ERROR.
    """
    for file in landing.files:
        path = landing.path_of(file)
        with explained(path):
            if not file.is_in(landing.folder) or checksum_of(path) != file.checksum:
                raise data_error(f"{path} is not as it was received: remove its folder, and collect it again")


def _with_columns(batch: pa.RecordBatch, added: Mapping[str, str]) -> pa.RecordBatch:
    """Return the batch with columns of one value each; they take the place of those of the same name."""
    if not added:
        return batch
    columns = {name: batch[name] for name in batch.schema.names}
    columns |= {name: pa.repeat(pa.scalar(value, pa.string()), batch.num_rows) for name, value in added.items()}
    return pa.RecordBatch.from_pydict(columns)


def _format_of(name: str) -> str:
    found = FORMATS.get(Path(name).suffix.lower())
    if found is None:
        raise configuration_error(
            f"{name}: the name does not say what it holds: set format to csv, ndjson, json or parquet"
        )
    return found
