"""No-op jobs in threads, compared with the bare threads of concurrent.futures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.contestants import bare, ours, warm
from tests.benchmarks.figures import Figures, Report, Row, in_turn

WORKERS = 16
JOBS = 20_000


def measure_thread_throughput() -> dict[str, Figures]:
    """Measure the jobs per second of each pool."""
    pools = {"ours": ours("thread", WORKERS), "bare": bare(ThreadPoolExecutor(WORKERS))}
    with warm(pools, JOBS) as rates:
        return in_turn(rates)


@pytest.mark.bench
def test_thread_throughput(report: Report) -> None:
    """No-op jobs in threads per second."""
    measured = apart(measure_thread_throughput)
    report.add(
        [
            Row(
                what=f"no-op jobs/s, {WORKERS} threads, beside concurrent.futures",
                ours=measured["ours"].summary(),
                beside=measured["bare"].summary(),
                figure=measured["ours"].over(measured["bare"]).median,
                at_least=0.4,
                rounds={"ours": measured["ours"], "concurrent.futures": measured["bare"]},
            )
        ]
    )
    assert all(min(figures.values) > 0 for figures in measured.values())
