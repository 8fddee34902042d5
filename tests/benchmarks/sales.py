"""Sales as CSV, and how the pipeline collects and processes them: what its CPU, memory and small files cost.

python -m tests.benchmarks.sales generate FOLDER [ROWS [FILES]]    FILES: as many files of one day each
python -m tests.benchmarks.sales functions FOLDER LAKE            the bodies of the jobs, one after another
python -m tests.benchmarks.sales measure FOLDER LAKE              the same in a process of its own, twice
python -m tests.benchmarks.sales flow FOLDER LAKE                 `executor-adapter pipeline run`, twice
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import yaml

from executor_adapter.config import load_config
from executor_adapter.pipeline import collect_window, configured_tables, find_windows, process_window

SECONDS_APART = 1.033
COLUMNS = {
    "id": "integer",
    "sold_at": "timestamp",
    "country": "text",
    "customer": "integer",
    "amount": "decimal(12, 2)",
    "note": "text",
}


def generate(folder: Path, rows: int = 2_500_000, files: int = 0) -> None:
    """Write the rows as one file, or as so many files of one day each."""
    folder.mkdir(parents=True, exist_ok=True)
    part = rows // (files or 1)
    for number in range(files or 1):
        moment = f"TIMESTAMP '2026-01-01' + to_days({number}) + to_seconds(CAST(i * {SECONDS_APART} AS BIGINT))"
        duckdb.connect().execute(
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
    """Collect and process in this process, without a flow, and sum by country."""
    (table,) = configured_tables(load_config(str(write_config(folder, lake))), "shop")
    windows: set[str] = set()
    for window in find_windows(table):
        windows.update(collect_window(table, window)["windows"])
    print(sum(process_window(table, window).kept for window in sorted(windows)), "rows processed")
    total = "SELECT country, count(*), sum(amount) FROM read_parquet(?) GROUP BY ALL"
    print(len(duckdb.execute(total, [str(table.processed.folder)]).fetchall()), "countries")


def measured(name: str, command: list[str]) -> None:
    """Run a command, and print what it and its processes took."""
    os.sync()
    began = time.perf_counter()
    program = subprocess.Popen([sys.executable, *command])
    _, status, used = os.wait4(program.pid, 0)
    program.returncode = os.waitstatus_to_exitcode(status)
    cpu, wall = used.ru_utime + used.ru_stime, time.perf_counter() - began
    print(f"{name}: {cpu:.2f} CPU s, {wall:.2f} s, {used.ru_maxrss // 1024} MB, exit {program.returncode}", flush=True)


def main(what: str, folder: Path, *rest: str) -> None:
    if what == "generate":
        generate(folder, *map(int, rest))
        return
    lake = Path(rest[0])
    if what == "functions":
        run_functions(folder, lake)
        return
    shutil.rmtree(lake, ignore_errors=True)
    own = ["-m", "tests.benchmarks.sales", "functions", str(folder), str(lake)]
    flow = ["-m", "executor_adapter.cli", "pipeline", "run", "--config", str(write_config(folder, lake))]
    for name in ("first run", "nothing new"):
        measured(name, own if what == "measure" else flow)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
