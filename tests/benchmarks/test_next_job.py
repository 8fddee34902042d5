"""From a kill until the next job starts in the freed slot, with pandas preloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import ExecutorSettings, Settings
from tests.benchmarks.apart import apart
from tests.benchmarks.figures import Figures, Report, Row
from tests.benchmarks.functions import hang, now
from tests.benchmarks.trees import Tree

KILLS = 200
LIMIT = 0.1
PRELOADED = ExecutorSettings(preload=("pandas", "tests.benchmarks.functions"))


def measure_next_job(path: Path) -> Figures:
    """Measure the seconds from the death of a killed job's worker to the start of the next job."""
    values: list[float] = []
    with JobExecutor(1, config=Settings(executor=PRELOADED)) as executor:
        executor.run(Job(function=now, pool="process"))
        while len(values) < KILLS:
            killed = executor.submit(
                Job(function=hang, args=(str(path),), pool="process", max_runtime=LIMIT, retry_attempts=0)
            )
            following = executor.submit(Job(function=now, pool="process", max_runtime=60.0))
            tree = Tree.announced_at(path, killed)
            if tree is not None:
                died = tree.wait_until_dead()
                values.append(following.result() - died)
    return Figures(tuple(values))


@pytest.mark.bench
def test_next_job(report: Report, tmp_path: Path) -> None:
    """How soon after a kill the next job starts."""
    measured = apart(measure_next_job, tmp_path / "began")
    report.add(
        [
            Row(
                what=f"ms from a kill to the next job's start, pandas preloaded, {KILLS} kills: p99",
                ours=measured.summary(".1f", 1e3),
                figure=measured.percentile(0.99) * 1e3,
                form=".1f",
                at_most=20.0,
                rounds={"ours": measured},
            )
        ]
    )
