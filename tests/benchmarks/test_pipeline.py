"""The pipeline beside a plain pandas script that does the same work, at 1 and at 10 times the data."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from tests.benchmarks.figures import Figures, Report, Row
from tests.benchmarks.flights import WORKERS, write_source

PROJECT = Path(__file__).parents[2]
FLIGHTS = 336_776
ROUNDS, ROUNDS_OF_TEN = (int(each) for each in os.environ.get("PIPELINE_ROUNDS", "5,2").split(","))
SCRIPTS = {"pandas": "a pandas script", "rejects": "one that puts rejects aside"}
NAMES = ("ours", *SCRIPTS)


class Usage(NamedTuple):
    """What a program and all its processes took."""

    cpu: float
    """Seconds of all processes."""
    wall: float
    """Seconds from its start to its end."""
    peak: float
    """Megabytes of memory of the largest process."""


def usage(name: str, source: Path, lake: Path) -> Usage:
    """Run one of the programs, and wait until it and its processes have ended."""
    shutil.rmtree(lake, ignore_errors=True)
    os.sync()  # What was written before is not written during the measurement.
    began = time.perf_counter()
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.flights", name, str(source), str(lake)], cwd=PROJECT
    )
    _, status, used = os.wait4(program.pid, 0)
    program.returncode = os.waitstatus_to_exitcode(status)
    assert program.returncode == 0
    return Usage(used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss / 1024)


def in_turn(source: Path, folder: Path, rounds: int) -> dict[str, list[Usage]]:
    """Run each program once per round, so that other load on the machine affects all alike."""
    measured: dict[str, list[Usage]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name in NAMES:
            measured[name].append(usage(name, source, folder / name))
    return measured


def figures(runs: list[Usage], field: str) -> Figures:
    return Figures(tuple(getattr(run, field) for run in runs))


def processed(table: Path) -> str:
    """Return the checksum of the processed rows, in the order of their windows."""
    rows = ds.dataset(table, partitioning="hive").to_table().sort_by("window").drop_columns(["window"])
    rows = rows.replace_schema_metadata().combine_chunks()
    fields = [pa.field(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in rows.schema]
    digest = hashlib.sha256()
    for batch in rows.cast(pa.schema(fields)).to_batches():
        digest.update(batch.serialize())
    return digest.hexdigest()


@pytest.mark.bench
def test_pipeline_beside_pandas(report: Report, tmp_path: Path) -> None:
    """CPU, wall time and memory of the pipeline, beside those of a script, at 1 and at 10 times the data."""
    write_source(tmp_path / "one", 1)
    write_source(tmp_path / "ten", 10)
    in_turn(tmp_path / "one", tmp_path, 1)  # Compiles modules, and reads the files into the cache.
    one = in_turn(tmp_path / "one", tmp_path, ROUNDS)
    expected = processed(tmp_path / "ours/processed/nyc/flights")
    assert [processed(tmp_path / name / "processed") for name in SCRIPTS] == [expected] * len(SCRIPTS)
    report.add(rows_at_one(one))
    report.add(rows_at_ten(one, in_turn(tmp_path / "ten", tmp_path, ROUNDS_OF_TEN)))


def rows_at_one(one: dict[str, list[Usage]]) -> list[Row]:
    """Return the rows of the table that compare the programs at 1 times the data."""
    found = []
    for script, words in SCRIPTS.items():
        for field, unit, target in (("cpu", "CPU seconds", 1.5), ("wall", "seconds", 1.25)):
            mine, its = figures(one["ours"], field), figures(one[script], field)
            found.append(
                Row(
                    what=f"pipeline, {FLIGHTS:,} flights, {WORKERS} processes: {unit}, beside {words}",
                    ours=mine.summary(".2f"),
                    beside=its.summary(".2f"),
                    figure=mine.over(its).median,
                    at_most=target,
                    rounds={"ours": mine, script: its},
                )
            )
    return found


def rows_at_ten(one: dict[str, list[Usage]], ten: dict[str, list[Usage]]) -> list[Row]:
    """Return the rows of the table that are about 10 times the data."""
    mine, cpu, peak = (figures(ten["ours"], field) for field in ("wall", "cpu", "peak"))
    cpu_at_one, its_peak = figures(one["ours"], "cpu"), figures(ten["pandas"], "peak")
    walls = {script: figures(ten[script], "wall") for script in SCRIPTS}
    return [
        *(
            Row(
                what=f"pipeline, 10 times the flights, {WORKERS} processes: seconds, beside {words}",
                ours=mine.summary(".1f"),
                beside=walls[script].summary(".1f"),
                figure=walls[script].over(mine).median,
                at_least=1.5,
                rounds={"ours": mine, script: walls[script]},
            )
            for script, words in SCRIPTS.items()
        ),
        Row(
            what="pipeline, 10 times the flights: CPU seconds, beside those at 1 times",
            ours=cpu.summary(".1f"),
            beside=cpu_at_one.summary(".1f"),
            figure=cpu.median / cpu_at_one.median,
            at_most=11,
            rounds={"at 10 times": cpu, "at 1 times": cpu_at_one},
        ),
        Row(
            what="pipeline, 10 times the flights: MB of the largest process, beside a pandas script",
            ours=peak.summary(",.0f"),
            beside=its_peak.summary(",.0f"),
            figure=peak.median,
            form=",.0f",
            at_most=400,
            rounds={"ours": peak, "pandas": its_peak},
        ),
    ]
