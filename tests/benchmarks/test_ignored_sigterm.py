"""Three jobs at once that ignore SIGTERM: each is dead when its grace period is over, not one after another."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pebble
import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import ExecutorSettings, Settings
from tests.benchmarks.apart import apart
from tests.benchmarks.figures import ROUNDS, Figures, Report, Row
from tests.benchmarks.functions import hang_ignoring_sigterm
from tests.benchmarks.trees import Tree

CONCURRENT_JOBS = 3
LIMIT = 0.5
GRACE = 0.5


def measure_ignored_sigterm(directory: Path) -> Figures:
    """Measure the seconds after limit and grace period at which each job was dead."""
    values = []
    with JobExecutor(CONCURRENT_JOBS, config=Settings(executor=ExecutorSettings(kill_grace=GRACE))) as executor:
        for _ in range(ROUNDS):
            paths = [directory / str(number) for number in range(CONCURRENT_JOBS)]
            futures = [executor.submit(_job(path)) for path in paths]
            trees = _begun(paths, futures)
            values += [tree.wait_until_dead() - tree.began - LIMIT - GRACE for tree in trees]
    return Figures(tuple(values))


def measure_pebble(directory: Path) -> Figures:
    """Measure the seconds after the limit with pebble, which waits its grace period of 3 s for each job in turn."""
    with pebble.ProcessPool(max_workers=CONCURRENT_JOBS) as pool:
        paths = [directory / str(number) for number in range(CONCURRENT_JOBS)]
        futures = [pool.schedule(hang_ignoring_sigterm, args=(str(path),), timeout=LIMIT) for path in paths]
        trees = _begun(paths, futures)
        return Figures(tuple(tree.wait_until_dead() - tree.began - LIMIT for tree in trees))


def _job(path: Path) -> Job:
    return Job(function=hang_ignoring_sigterm, args=(str(path),), pool="process", max_runtime=LIMIT, retry_attempts=0)


def _begun(paths: list[Path], futures: Sequence[Future[Any]]) -> list[Tree]:
    trees = [Tree.announced_at(path, future) for path, future in zip(paths, futures, strict=True)]
    return [tree for tree in trees if tree is not None]


@pytest.mark.bench
def test_ignored_sigterm(report: Report, tmp_path: Path) -> None:
    """How long after the grace period the last of three jobs is dead."""
    measured = apart(measure_ignored_sigterm, tmp_path)
    late = apart(measure_pebble, tmp_path)
    report.add(
        [
            Row(
                what=f"ms past grace, {CONCURRENT_JOBS} at once that ignore SIGTERM: worst of {len(measured.values)}",
                ours=measured.summary(".1f", 1e3),
                beside=f"pebble, past the limit: {', '.join(f'{each:.1f} s' for each in sorted(late.values))}",
                figure=max(measured.values) * 1e3,
                form=".1f",
                at_most=50.0,
                rounds={"ours": measured, "pebble": late},
            )
        ]
    )
    assert min(measured.values) > -GRACE
