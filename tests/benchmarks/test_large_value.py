"""A large DataFrame to a process and back, compared with concurrent.futures."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import ExecutorSettings, Settings
from tests.benchmarks.apart import apart
from tests.benchmarks.figures import Figures, Report, Row, in_turn
from tests.benchmarks.functions import echo

SIZE = 200 << 20
COLUMNS = 10


def measure_large_value() -> dict[str, Figures]:
    """Measure the seconds from submission to the result, of each pool."""
    rows = SIZE // 8 // COLUMNS
    table = pd.DataFrame({f"column {number}": np.arange(rows, dtype=np.float64) + number for number in range(COLUMNS)})
    settings = Settings(executor=ExecutorSettings(preload=("pandas",)))
    with JobExecutor(1, config=settings) as executor, ProcessPoolExecutor(1) as pool:
        contestants: dict[str, Callable[[], pd.DataFrame]] = {
            "ours": lambda: executor.run(Job(function=echo, args=(table,), pool="process", max_runtime=60.0)),
            "concurrent.futures": lambda: pool.submit(echo, table).result(),
        }
        for run in contestants.values():
            pd.testing.assert_frame_equal(run(), table)
        return in_turn({name: _seconds(run) for name, run in contestants.items()})


def _seconds(run: Callable[[], pd.DataFrame]) -> Callable[[], float]:
    def measure() -> float:
        started = time.perf_counter()
        result = run()
        took = time.perf_counter() - started
        assert len(result.columns) == COLUMNS
        return took

    return measure


@pytest.mark.bench
def test_large_value(report: Report) -> None:
    """How many times faster a DataFrame of 200 MiB makes the round trip."""
    measured = apart(measure_large_value)
    report.add(
        [
            Row(
                what=f"times as fast, a DataFrame of {SIZE >> 20} MiB there and back (s)",
                ours=measured["ours"].summary(".3f"),
                beside=measured["concurrent.futures"].summary(".3f"),
                figure=measured["concurrent.futures"].over(measured["ours"]).median,
                at_least=3.0,
                rounds=measured,
            )
        ]
    )
