"""No-op jobs in processes, compared with concurrent.futures and pebble."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.contestants import bare, ours, pebbles, warm
from tests.benchmarks.figures import Figures, Report, Row, in_turn

WORKERS = os.cpu_count() or 2
JOBS = 10_000


def measure_process_throughput() -> dict[str, Figures]:
    """Measure the jobs per second of each pool."""
    pools = {
        "ours": ours("process", WORKERS),
        "concurrent.futures": bare(ProcessPoolExecutor(WORKERS)),
        "pebble": pebbles(WORKERS),
    }
    with warm(pools, JOBS) as rates:
        return in_turn(rates)


@pytest.mark.bench
def test_process_throughput(report: Report) -> None:
    """No-op jobs in processes per second."""
    measured = apart(measure_process_throughput)
    rows = []
    for peer, target in (("concurrent.futures", 1.5), ("pebble", 1.1)):
        rows.append(
            Row(
                what=f"no-op jobs/s, {WORKERS} processes, beside {peer}",
                ours=measured["ours"].summary(),
                beside=measured[peer].summary(),
                figure=measured["ours"].over(measured[peer]).median,
                at_least=target,
                rounds={name: measured[name] for name in ("ours", peer)},
            )
        )
    report.add(rows)
    assert all(min(figures.values) > 0 for figures in measured.values())
