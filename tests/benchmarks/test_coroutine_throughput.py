"""No-op jobs in coroutines."""

from __future__ import annotations

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.contestants import ours, warm
from tests.benchmarks.figures import Figures, Report, Row, in_turn

WORKERS = 16
JOBS = 20_000


def measure_coroutine_throughput() -> Figures:
    """Measure jobs per second."""
    with warm({"ours": ours("coroutine", WORKERS)}, JOBS) as rates:
        return in_turn(rates)["ours"]


@pytest.mark.bench
def test_coroutine_throughput(report: Report) -> None:
    """No-op jobs in coroutines per second."""
    measured = apart(measure_coroutine_throughput)
    report.add(
        [
            Row(
                what=f"no-op jobs/s, coroutines, {WORKERS} at once",
                ours=measured.summary(),
                figure=measured.median,
                form=",.0f",
                at_least=20_000,
                rounds={"ours": measured},
            )
        ]
    )
    assert min(measured.values) > 0
