"""No-op jobs in threads, beside the bare threads of concurrent.futures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.contestants import bare, ours, warm
from tests.benchmarks.figures import Figures, Report, Row, in_turn

WORKERS = 16
JOBS = 20_000


def measure_thread_throughput() -> dict[str, Figures]:
    """Jobs a second of each pool."""
    pools = {"ours": ours("thread", WORKERS), "bare": bare(ThreadPoolExecutor(WORKERS))}
    with warm(pools, JOBS) as rates:
        return in_turn(rates)


@pytest.mark.bench
def test_thread_throughput(report: Report) -> None:
    measured = apart(measure_thread_throughput)
    report.add(
        [
            Row(
                what=f"no-op jobs/s, {WORKERS} threads, beside concurrent.futures",
                ours=measured["ours"].told(),
                beside=measured["bare"].told(),
                figure=measured["ours"].over(measured["bare"]).median,
                at_least=0.4,
            )
        ]
    )
    assert all(min(figures.values) > 0 for figures in measured.values())
