"""Reads landed files as rows of text, whatever they are, and divides the rows into windows in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from executor_adapter.config import Format
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.disk import checksum_of, explained
from executor_adapter.pipeline.sources.arrow_rows import read_parquet
from executor_adapter.pipeline.sources.csv_rows import read_csv
from executor_adapter.pipeline.sources.json_rows import count_json, read_json, read_ndjson
from executor_adapter.pipeline.sources.landing import LandedFile, Landing
from executor_adapter.pipeline.sources.unpacking import MAX_UNPACKED, unpacked
from executor_adapter.pipeline.sources.windows import SINGLE_WINDOW
from executor_adapter.pipeline.text_rows import OnRejects

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
    landing: Landing, format: Format, on_rejects: OnRejects, member: str | None = None, max_bytes: int = MAX_UNPACKED
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all files of a landing as batches of text columns, in their order.

    Args:
        landing: what was received.
        format: how its bytes become rows.
        on_rejects: is given what is not a row, in batches.
        member: the file inside ZIP archives that have several.
        max_bytes: bytes of an unpacked file, at most.

    Raises:
        DataCollectionException: DATA_ERROR, a file is broken, or not as it was received; CONFIGURATION_ERROR, a setting
            is missing or wrong.
    """
    for file in landing.files:
        path = landing.path_of(file)
        _check_content(path, file)
        if file.rows == 0:
            continue
        encoding = format.encoding or file.details.get("encoding")
        added = file.details.get("columns") or {}
        with unpacked(path, member=member, max_bytes=max_bytes) as (plain, inside):
            given = format.model_copy(update={"encoding": encoding, "format": format.format or _format_of(inside)})
            is_member = inside not in (path.name, path.name.removesuffix(".gz"))
            name = f"{file.origin}: {inside}" if is_member else file.origin
            for batch in _read_file(plain, name, given, on_rejects):
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
    rejected: list[int] = []
    rows = sum(batch.num_rows for batch in _read_file(path, name, format, lambda some: rejected.append(some.num_rows)))
    return rows + sum(rejected), None


def _read_file(path: Path, name: str, format: Format, on_rejects: OnRejects) -> Iterator[pa.RecordBatch]:
    match format.format:
        case "csv":
            return read_csv(path, name, format, on_rejects)
        case "ndjson":
            return read_ndjson(path, name, format, on_rejects)
        case "json":
            return read_json(path, name, format, on_rejects)
        case _:
            return read_parquet(path, name, format)


def _check_content(path: Path, file: LandedFile) -> None:
    with explained(path):
        if not path.exists() or path.stat().st_size != file.size or checksum_of(path) != file.checksum:
            raise DataCollectionException(
                f"{path} is not as it was received: remove its folder, and collect it again", error_code="DATA_ERROR"
            )


def _with_columns(batch: pa.RecordBatch, added: Mapping[str, str]) -> pa.RecordBatch:
    """Return the batch with columns of one value each; they take the place of those of the same name."""
    if not added:
        return batch
    columns = {name: batch[name] for name in batch.schema.names}
    columns |= {name: pa.repeat(pa.scalar(value, pa.string()), batch.num_rows) for name, value in added.items()}
    return pa.RecordBatch.from_pydict(columns)


def divide(
    batches: Iterable[pa.RecordBatch], columns: Sequence[str], period: str | None = None, zone: str = "UTC"
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield the rows by the window they belong to, in one pass; the rows of a window keep their order.

    Args:
        batches: rows.
        columns: the columns whose values make the name of the window, joined by "-"; none: all rows are in "all".
        period: "year", "month" or "day": of the one column, a date, a moment, or text in ISO 8601, only so much is
            taken.
        zone: the zone in which moments have their day.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, a column is not there.
    """
    for batch in batches:
        if not columns:
            yield SINGLE_WINDOW, batch
            continue
        windows = _windows(batch, columns, period, zone)
        names = pc.unique(windows).to_pylist()
        runs = pc.run_end_encode(windows)
        if len(runs.values) > len(names):
            for window in names:
                yield window, batch.filter(pc.equal(windows, window))
            continue
        # The rows of each window are together, as in most files: nothing is copied.
        start = 0
        for window, end in zip(names, runs.run_ends.to_pylist(), strict=True):
            yield window, batch.slice(start, end - start)
            start = end


_PERIODS = {"year": 4, "month": 7, "day": 10}


def _windows(batch: pa.RecordBatch, columns: Sequence[str], period: str | None, zone: str) -> pa.Array:
    names = batch.schema.names
    missing = next((each for each in columns if each not in names), None)
    if missing is not None:
        raise DataCollectionException(
            f"partition: there is no column {missing}: the columns are {', '.join(names)}",
            error_code="CONFIGURATION_ERROR",
        )
    return pc.binary_join_element_wise(*(_part_of_name(batch[each], period, zone) for each in columns), "-")


def _part_of_name(values: pa.Array, period: str | None, zone: str) -> pa.Array:
    if period is not None and pa.types.is_timestamp(values.type):
        values = pc.local_timestamp(values.cast(pa.timestamp("us", zone))).cast(pa.date32(), safe=False)
    # Of each value the name is made once, however many rows have it.
    found = values.dictionary_encode(null_encoding="encode")
    texts = found.dictionary.cast(pa.string())
    if period is not None:
        # What is not a date has a window of its own.
        dates = pc.match_substring_regex(texts, r"^\d{4}-\d\d-\d\d")
        texts = pc.if_else(dates, pc.utf8_slice_codeunits(texts, 0, _PERIODS[period]), None)
    # 2013-2 would come after 2013-10.
    names = pc.replace_substring_regex(texts, r"^(\d)$", r"0\1")
    return pc.fill_null(names, "null").take(found.indices)


def _format_of(name: str) -> str:
    found = FORMATS.get(Path(name).suffix.lower())
    if found is None:
        raise DataCollectionException(
            f"{name}: the name does not say what it holds: set format to csv, ndjson, json or parquet",
            error_code="CONFIGURATION_ERROR",
        )
    return found
