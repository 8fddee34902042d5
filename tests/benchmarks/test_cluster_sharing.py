"""How long users of a shared cluster wait for one another: two programs of ours, and plain tasks of the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import ClusterSettings, Settings
from tests.benchmarks.clusters import ENGINES, EngineName
from tests.benchmarks.figures import Figures, Report, Row
from tests.benchmarks.functions import nothing
from tests.contract.cluster.test_sharing import Crowd, Wait, on_dask, on_ray
from tests.waiting import wait_for

TIMES = 5
AT_MOST = 5.0
"""Seconds: `max_grant_seconds`, two looks in a row, of which Ray's answers are a second late, and what runs then."""


def waits(run: Callable[[], object]) -> Figures:
    """Measure the seconds of some calls, between which the others have the cluster again."""
    seconds = []
    for _ in range(TIMES):
        time.sleep(3)
        began = time.monotonic()
        run()
        seconds.append(time.monotonic() - began)
    return Figures(tuple(seconds))


@contextmanager
def endless(run_plain_task: Wait) -> Iterator[None]:
    """Let four users keep the cluster busy with plain tasks, each one after the other."""
    ended = threading.Event()

    def use() -> None:
        while not ended.is_set():
            run_plain_task()

    users = [threading.Thread(target=use) for _ in range(4)]
    for user in users:
        user.start()
    try:
        yield
    finally:
        ended.set()
        for user in users:
            user.join()


@pytest.mark.bench
@pytest.mark.parametrize("engine", ENGINES)
def test_a_shared_cluster(engine: EngineName, report: Report, tmp_path: Path) -> None:
    """On two slots that others keep busy without end: a plain task, and the first job of a program."""
    measured: dict[str, Figures] = {}
    with {"dask": on_dask, "ray": on_ray}[engine](tmp_path) as (section, run_plain_task):
        config: Any = Settings(cluster=ClusterSettings(**section))

        def run_first_job() -> None:
            with JobExecutor(1, config=config) as other:
                other.run(Job(function=nothing, pool=engine))

        with JobExecutor(4, config=config) as executor, Crowd(executor, engine) as crowd:
            wait_for(lambda: crowd.ended >= 4)
            measured["a plain task beside our jobs"] = waits(run_plain_task)
            measured["another program's first job beside our jobs"] = waits(run_first_job)
        if engine == "dask":  # Ray places no group beside tasks that follow one another without a pause.
            with endless(run_plain_task):
                measured["a program's first job beside plain tasks"] = waits(run_first_job)
    report.add(
        [
            Row(
                what=f"s of {what} on a shared {engine.title()} cluster, the longest of {TIMES}",
                ours=each.summary(".1f"),
                figure=max(each.values),
                form=".1f",
                at_most=AT_MOST,
                rounds={"ours": each},
            )
            for what, each in measured.items()
        ]
    )
