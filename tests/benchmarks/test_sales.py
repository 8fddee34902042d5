"""The pipeline beside dlt and a script of DuckDB: one large file, many small ones, and a run that finds nothing new.

The variable SALES has three numbers: rows of the large file, files of one day, and unchanged files, of ten rows each.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.benchmarks.figures import Report
from tests.benchmarks.sales import generate
from tests.benchmarks.usage import Usage, row, usage

ROWS, DAYS, FILES = (int(each) for each in os.environ.get("SALES", "2500000,365,10000").split(","))
ROWS_OF_A_FILE = 10
ROUNDS = int(os.environ.get("SALES_ROUNDS", "2"))
NAMES = {"functions": "ours", "dlt": "dlt with DuckDB", "duckdb": "a script of DuckDB, which does all again"}


def measured(folder: Path, lakes: Path, name: str, rounds: int) -> tuple[list[Usage], list[Usage]]:
    """Return what a program took for its first run, and for one that found nothing new."""
    first, again = list[Usage](), list[Usage]()
    for _ in range(rounds):
        for lake in lakes.glob(f"{name}*"):
            shutil.rmtree(lake) if lake.is_dir() else lake.unlink()
        for runs in (first, again):
            runs.append(usage("tests.benchmarks.sales", name, str(folder), str(lakes / name)))
    return first, again


@pytest.mark.bench
def test_sales_beside_dlt(report: Report, tmp_path: Path) -> None:
    """All give the same rows; the large file is bounded by CPU and memory, the small ones by time."""
    cases = (("rows", ROWS, 0, ROUNDS), ("days", DAYS * ROWS_OF_A_FILE, DAYS, ROUNDS), ("files", FILES * 10, FILES, 1))
    for kind, rows, files, rounds in cases:
        folder, lakes = tmp_path / kind, tmp_path / f"{kind}-lakes"
        lakes.mkdir()
        generate(folder, rows, files)
        found = {said: measured(folder, lakes, name, rounds) for name, said in NAMES.items()}
        assert len({run.printed for both in found.values() for runs in both for run in runs}) == 1
        first, again = ({name: both[which] for name, both in found.items()} for which in (0, 1))
        mine, mine_again = first.pop("ours"), again.pop("ours")
        if kind == "rows":
            report.add(
                [
                    row(f"sales, {rows:,} rows in a file: CPU seconds", "cpu", mine, first),
                    row(f"sales, {rows:,} rows in a file: MB of the largest process", "peak", mine, first, 600),
                    row(f"sales, {rows:,} rows, nothing new: CPU seconds", "cpu", mine_again, again, 1.5),
                ]
            )
        elif kind == "days":
            report.add(
                [
                    row(f"sales, {files:,} files of one day: seconds", "wall", mine, first, 12),
                    row(f"sales, {files:,} files, nothing new: seconds", "wall", mine_again, again, 3),
                ]
            )
        else:
            report.add([row(f"sales, {files:,} files, nothing new: seconds", "wall", mine_again, again, 15)])
