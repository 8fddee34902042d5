"""Reads landed files as rows of text, whatever they are, and divides the rows into windows in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from executor_adapter.config import Format
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.sources.arrow_rows import read_parquet
from executor_adapter.pipeline.sources.csv_rows import read_csv
from executor_adapter.pipeline.sources.json_rows import read_json, read_ndjson
from executor_adapter.pipeline.sources.landing import Landing
from executor_adapter.pipeline.sources.unpacking import unpacked
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
    landing: Landing, format: Format, on_rejects: OnRejects, member: str | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all files of a landing as batches of text columns, in their order.

    Args:
        landing: what was received.
        format: how its bytes become rows.
        on_rejects: is given what is not a row, in batches.
        member: the file inside ZIP archives that have several.

    Raises:
        DataCollectionException: DATA_ERROR, a file is broken; CONFIGURATION_ERROR, a setting is missing or wrong.
    """
    for file in landing.files:
        with unpacked(landing.path_of(file), member=member) as (path, inside):
            match format.format or _format_of(inside):
                case "csv":
                    yield from read_csv(path, file.name, format, on_rejects)
                case "ndjson":
                    yield from read_ndjson(path, file.name, format, on_rejects)
                case "json":
                    yield from read_json(path, file.name, format, on_rejects)
                case _:
                    yield from read_parquet(path, file.name, format)


def divide(
    batches: Iterator[pa.RecordBatch], columns: Sequence[str], period: str | None = None
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield the rows by the window they belong to, in one pass; the rows of a window keep their order.

    Args:
        batches: rows of text.
        columns: the columns whose values make the name of the window, joined by "-"; none: all rows are in "all".
        period: "year", "month" or "day": of the one column, a date in ISO 8601, only so much is taken.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, a column is not there.
    """
    for batch in batches:
        if not columns:
            yield SINGLE_WINDOW, batch
            continue
        windows = _windows(batch, columns, period)
        for window in pc.unique(windows).to_pylist():
            yield window, batch.filter(pc.equal(windows, window))


_PERIODS = {"year": 4, "month": 7, "day": 10}


def _windows(batch: pa.RecordBatch, columns: Sequence[str], period: str | None) -> pa.Array:
    names = batch.schema.names
    missing = next((each for each in columns if each not in names), None)
    if missing is not None:
        raise DataCollectionException(
            f"partition: there is no column {missing}: the columns are {', '.join(names)}",
            error_code="CONFIGURATION_ERROR",
        )
    texts = [batch[each] for each in columns]
    if period is not None:
        # What is not a date has a window of its own, where it is found when its rows are given their types.
        dates = pc.match_substring_regex(texts[0], r"^\d{4}-\d\d-\d\d")
        texts = [pc.if_else(dates, pc.utf8_slice_codeunits(texts[0], 0, _PERIODS[period]), None)]
    # 2013-2 would come after 2013-10.
    parts = [pc.fill_null(pc.replace_substring_regex(each, r"^(\d)$", r"0\1"), "null") for each in texts]
    return pc.binary_join_element_wise(*parts, "-")


def _format_of(name: str) -> str:
    found = FORMATS.get(Path(name).suffix.lower())
    if found is None:
        raise DataCollectionException(
            f"{name}: the name does not say what it holds: set format to csv, ndjson, json or parquet",
            error_code="CONFIGURATION_ERROR",
        )
    return found
