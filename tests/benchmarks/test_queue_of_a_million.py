"""A million queued jobs: the memory of each, and whether they run as fast as a few.

The variable QUEUED_JOBS sets another number than a million.
"""

from __future__ import annotations

import os
import statistics

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.contestants import PoolName
from tests.benchmarks.figures import ROUNDS, Figures, Report, Row
from tests.benchmarks.queued import measure_queued

MANY = int(os.environ.get("QUEUED_JOBS", "1000000"))
FEW = 10_000


def measure_queue(pool: PoolName) -> tuple[dict[str, float], Figures]:
    """Measure bytes per job and jobs per second with MANY queued, and jobs per second with FEW, before and after."""
    before = [apart(measure_queued, pool, FEW)["rate"] for _ in range(ROUNDS // 2)]
    many = apart(measure_queued, pool, MANY)
    after = [apart(measure_queued, pool, FEW)["rate"] for _ in range(ROUNDS - ROUNDS // 2)]
    return many, Figures((*before, *after))


@pytest.mark.bench
@pytest.mark.parametrize("pool", ["thread", "process"])
def test_queue_of_a_million(report: Report, pool: PoolName) -> None:
    """The memory and the speed of a million queued jobs."""
    many, few = measure_queue(pool)
    parts = f"queued in {many['queueing']:.0f} s, run in {many['running']:.0f} s"
    report.add(
        [
            Row(
                what=f"bytes per job, {MANY:,} queued no-op jobs, pool {pool}",
                ours=parts,
                figure=many["bytes"],
                form=",.0f",
                at_most=4096,
            ),
            Row(
                what=f"jobs/s of {MANY:,} queued, pool {pool}, beside {FEW:,}",
                ours=f"{many['rate']:,.0f}",
                beside=few.summary(),
                figure=many["rate"] / statistics.median(few.values),
                at_least=0.6,
                rounds={f"{FEW:,} queued": few},
            ),
        ]
    )
    assert many["rate"] > 0
