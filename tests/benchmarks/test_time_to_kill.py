"""From a job's limit until its whole process tree is dead."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import ExecutorSettings, Settings
from tests.benchmarks.apart import apart
from tests.benchmarks.figures import Figures, Report, Row
from tests.benchmarks.functions import hang, hang_with_child, now
from tests.benchmarks.trees import Tree

KILLS = 200
LIMIT = 0.1
PRELOADED = ExecutorSettings(preload=("pandas", "tests.benchmarks.functions"))


def measure_time_to_kill(path: Path, *, with_child: bool) -> Figures:
    """Measure the seconds after the limit at which the last process of the tree was seen dead, for each kill."""
    function = hang_with_child if with_child else hang
    values: list[float] = []
    with JobExecutor(2, config=Settings(executor=PRELOADED)) as executor:
        executor.run(Job(function=now, pool="process"))  # wait for the guardian's imports
        while len(values) < KILLS:
            job = Job(function=function, args=(str(path),), pool="process", max_runtime=LIMIT, retry_attempts=0)
            future = executor.submit(job)
            tree = Tree.announced_at(path, future)
            if tree is not None:
                values.append(tree.wait_until_dead() - tree.began - LIMIT)
            assert isinstance(future.exception(), TimeoutError)
    return Figures(tuple(values[1:]))  # the first one waits for the guardian's imports


@pytest.mark.bench
@pytest.mark.parametrize("with_child", [False, True])
def test_time_to_kill(report: Report, tmp_path: Path, with_child: bool) -> None:
    """How long after its limit a process tree is dead."""
    measured = apart(measure_time_to_kill, tmp_path / "began", with_child=with_child)
    what = f"ms from limit to tree dead, {KILLS} kills, pandas loaded" + (", with a child" if with_child else "")
    half, most = measured.percentile(0.5) * 1e3, measured.percentile(0.99) * 1e3
    spread = measured.summary(".1f", 1e3)
    report.add(
        [
            Row(what=f"{what}: p50", ours=spread, figure=half, form=".1f", at_most=5.0, rounds={"ours": measured}),
            Row(what=f"{what}: p99", ours=spread, figure=most, form=".1f", at_most=25.0),
        ]
    )
