"""A million queued jobs: what each takes of memory, and whether they still run as fast as few.

QUEUED_JOBS in the environment gives another number than a million, for a quick look.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

import pytest

from tests.benchmarks.contestants import PoolName
from tests.benchmarks.figures import ROUNDS, Figures, Report, Row

MANY = int(os.environ.get("QUEUED_JOBS", "1000000"))
FEW = 10_000


def measure_queue(pool: PoolName) -> tuple[dict[str, float], Figures]:
    """Bytes a job and jobs a second where MANY are queued; jobs a second where FEW are, half before, half after."""
    before = [_run(pool, FEW)["rate"] for _ in range(ROUNDS // 2)]
    many = _run(pool, MANY)
    after = [_run(pool, FEW)["rate"] for _ in range(ROUNDS - ROUNDS // 2)]
    return many, Figures((*before, *after))


def _run(pool: PoolName, jobs: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.queued", pool, str(jobs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


@pytest.mark.bench
@pytest.mark.parametrize("pool", ["thread", "process"])
def test_queue_of_a_million(report: Report, pool: PoolName) -> None:
    many, few = measure_queue(pool)
    parts = f"queued in {many['queueing']:.0f} s, run in {many['running']:.0f} s"
    report.add(
        [
            Row(
                what=f"bytes a job, {MANY:,} queued no-op jobs, pool {pool}",
                ours=parts,
                figure=many["bytes"],
                form=",.0f",
                at_most=4096,
            ),
            Row(
                what=f"jobs/s of {MANY:,} queued, pool {pool}, beside {FEW:,}",
                ours=f"{many['rate']:,.0f}",
                beside=few.told(),
                figure=many["rate"] / statistics.median(few.values),
                at_least=0.6,
            ),
        ]
    )
    assert many["rate"] > 0
