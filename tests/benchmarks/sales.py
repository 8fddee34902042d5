"""Sales as CSV, and how the pipeline, dlt and a script of DuckDB collect and process them: CPU, memory and small files.

python -m tests.benchmarks.sales generate FOLDER [ROWS [FILES]]    FILES: as many files of one day each
python -m tests.benchmarks.sales functions FOLDER LAKE            the bodies of the jobs, one after another
python -m tests.benchmarks.sales config CONFIG                    the same, of any table that has these columns
python -m tests.benchmarks.sales dlt|duckdb FOLDER LAKE           the same by dlt, and by a script of DuckDB
python -m tests.benchmarks.sales measure FOLDER LAKE              `functions` in a process of its own, twice
python -m tests.benchmarks.sales flow FOLDER LAKE                 `executor-adapter pipeline run`, twice
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import duckdb
import yaml

from executor_adapter.config import load_config
from executor_adapter.pipeline import (
    collect_windows,
    configured_tables,
    find_windows,
    process_windows,
    windows_to_process,
)
from tests.benchmarks.usage import usage

SECONDS_APART = 1.033
COLUMNS = {
    "id": "integer",
    "sold_at": "timestamp",
    "country": "text",
    "customer": "integer",
    "amount": "decimal(12, 2)",
    "note": "text",
}


KINDS = {"integer": "BIGINT", "timestamp": "TIMESTAMPTZ", "text": "VARCHAR", "decimal(12, 2)": "DECIMAL(12, 2)"}
LATEST = "SELECT * FROM {0} WHERE rowid IN (SELECT arg_max(rowid, sold_at) FROM {0} GROUP BY id)"
TOTAL = "SELECT count(*), sum(amount), count(DISTINCT country) FROM {0}"
MAX_WINDOWS = 500
"""Windows of one job, as the flow has it."""


def generate(folder: Path, rows: int = 2_500_000, files: int = 0) -> None:
    """Write the rows as one file, or as so many files of one day each."""
    folder.mkdir(parents=True, exist_ok=True)
    part, database = rows // (files or 1), duckdb.connect()
    for number in range(files or 1):
        moment = f"TIMESTAMP '2026-01-01' + to_days({number}) + to_seconds(CAST(i * {SECONDS_APART} AS BIGINT))"
        database.execute(
            f"""COPY (
                SELECT {number * part} + i AS id,
                    strftime({moment}, '%Y-%m-%dT%H:%M:%SZ') AS sold_at,
                    'country ' || (i * 7919 % 142) AS country,
                    i * 104729 % 1000 AS customer,
                    printf('%.2f', (i * 31 % 1000000) / 100.0) AS amount,
                    'note number ' || i || ' with some text, okay ' || (i % 97) AS note
                FROM range({part}) t(i)
            ) TO '{folder}/sales-{number:05}.csv' (HEADER, QUOTE '"')"""
        )


def write_config(folder: Path, lake: Path) -> Path:
    """Write a configuration that types the rows, and keeps the latest of each id."""
    table = {
        "file": "*.csv",
        "partition": ["sold_at"],
        "period": "day" if len(list(folder.iterdir())) > 1 else "month",
        "schema": {"columns": COLUMNS},
        "steps": [{"deduplicate": {"key": "id", "order_by": "sold_at"}}],
    }
    settings = {
        "lake": str(lake),
        "tools": {"shop": {"source": "files", "directory": str(folder), "tables": {"sales": table}}},
    }
    config = lake.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings))
    return config


def run_functions(folder: Path, lake: Path) -> None:
    """Collect and process in this process as the jobs of a flow do, without a flow."""
    collect_and_process(write_config(folder, lake))


def collect_and_process(config: Path) -> None:
    """Do the jobs of the only table, one after another, and print what its processed rows are in all."""
    (table,) = configured_tables(load_config(str(config)), "shop")
    files = find_windows(table)
    for start in range(0, len(files), MAX_WINDOWS):
        collect_windows(table, files[start : start + MAX_WINDOWS])
    windows = list(windows_to_process(table))
    for start in range(0, len(windows), MAX_WINDOWS):
        process_windows(table, windows[start : start + MAX_WINDOWS])
    print(*duckdb.execute(TOTAL.format(f"read_parquet('{table.processed.folder}/*/*.parquet')")).fetchall())


def run_dlt(folder: Path, lake: Path) -> None:
    """Load the files that are new by dlt into a database of DuckDB, and keep the latest of each id there."""
    import dlt
    from dlt.sources.filesystem import filesystem, read_csv_duckdb

    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "ERROR"}
    new: Any = dlt.sources.incremental("modification_date")
    files = filesystem(folder.absolute().as_uri(), file_glob="*.csv", incremental=new)
    rows = (files | read_csv_duckdb(use_pyarrow=True)).with_name("sales")
    rows.apply_hints(columns={"amount": {"data_type": "decimal", "precision": 12, "scale": 2}})
    lake.mkdir(parents=True, exist_ok=True)
    file = lake / "sales.duckdb"
    place = dlt.destinations.duckdb(str(file))
    dlt.pipeline("sales", pipelines_dir=str(lake / "dlt"), destination=place, dataset_name="shop").run(rows)
    with duckdb.connect(file) as database:
        database.execute(f"CREATE OR REPLACE TABLE latest AS {LATEST.format('shop.sales')}")
        print(*database.execute(TOTAL.format("latest")).fetchall())


def run_duckdb(folder: Path, lake: Path) -> None:
    """Read all files by a script of DuckDB, and keep the latest of each id by window; it remembers nothing."""
    columns = ", ".join(f"'{name}': '{KINDS[kind]}'" for name, kind in COLUMNS.items())
    shutil.rmtree(lake, ignore_errors=True)
    lake.mkdir(parents=True)
    with duckdb.connect(lake.with_suffix(".duckdb"), config={"threads": 2}) as database:
        database.execute(f"CREATE OR REPLACE TABLE sales AS FROM read_csv('{folder}/*.csv', columns = {{{columns}}})")
        windows = f"SELECT *, strftime(sold_at, '%Y-%m') AS \"window\" FROM ({LATEST.format('sales')})"
        database.execute(f"COPY ({windows}) TO '{lake}' (FORMAT parquet, PARTITION_BY (\"window\"), OVERWRITE)")
        print(*database.execute(TOTAL.format(f"read_parquet('{lake}/*/*.parquet')")).fetchall())


RUNS = {"functions": run_functions, "dlt": run_dlt, "duckdb": run_duckdb}


def main(what: str, folder: Path, *rest: str) -> None:
    if what == "config":
        collect_and_process(folder)
        return
    if what == "generate":
        generate(folder, *map(int, rest))
        return
    lake = Path(rest[0])
    if what in RUNS:
        RUNS[what](folder, lake)
        return
    shutil.rmtree(lake, ignore_errors=True)
    own = ("tests.benchmarks.sales", "functions", str(folder), str(lake))
    flow = ("executor_adapter.cli", "pipeline", "run", "--config", str(write_config(folder, lake)))
    for name in ("first run", "nothing new"):
        took = usage(*(own if what == "measure" else flow))
        print(
            f"{name}: {took.cpu:.2f} CPU s, {took.wall:.2f} s, {took.peak:.0f} MB: {took.printed.strip()}", flush=True
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
