"""Tests clusters that a program shares with plain tasks of the engine, on real clusters of Dask and Ray."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest

from executor_adapter import Job, JobExecutor, JobFuture
from executor_adapter.config import ClusterSettings, DaskSettings, RaySettings, Settings
from tests.contract.cluster.dask_cluster import dask_cluster
from tests.contract.cluster.ray_cluster import ray_cluster
from tests.waiting import PATIENCE, wait_for

Wait = Callable[[], object]


def nap(number: float) -> float:
    time.sleep(0.1)
    return number


@contextlib.contextmanager
def on_dask(folder: Path) -> Iterator[tuple[dict[str, Any], Wait]]:
    """A cluster of one worker; the call runs a plain task there."""
    with dask_cluster(folder, workers=1, threads=2) as cluster:
        with distributed.Client(cluster.address, set_as_default=False) as client:  # type: ignore[no-untyped-call]
            user: Any = client
            yield (
                {"dask": DaskSettings(address=cluster.address)},
                lambda: user.submit(nap, time.monotonic()).result(PATIENCE),
            )


@contextlib.contextmanager
def on_ray(folder: Path) -> Iterator[tuple[dict[str, Any], Wait]]:
    """A cluster of one node, likewise."""
    import ray

    engine: Any = ray
    with ray_cluster(nodes=1) as cluster:
        engine.init(cluster.address, log_to_driver=False, configure_logging=False)
        try:
            task = engine.remote(num_cpus=1, max_retries=0)(nap)
            yield (
                {"ray": RaySettings(address=cluster.address)},
                lambda: engine.get(task.remote(time.monotonic()), timeout=PATIENCE),
            )
        finally:
            engine.shutdown()


class Crowd:
    """Keeps some jobs in an executor, each submitted as another one ends, until the block is left."""

    def __init__(self, executor: JobExecutor, pool: Any) -> None:
        self.ended = 0
        self._executor = executor
        self._job: dict[str, Any] = {"function": time.sleep, "args": (0.3,), "pool": pool, "retry_attempts": 0}
        self._goes_on = True

    def _submit(self, done: JobFuture | None = None) -> None:
        self.ended += done is not None
        if self._goes_on:
            self._executor.submit(Job(**self._job)).add_done_callback(self._submit)

    def __enter__(self) -> Crowd:
        for _ in range(20):
            self._submit()
        return self

    def __exit__(self, *_: object) -> None:
        self._goes_on = False


@pytest.mark.parametrize(
    "pool", [pytest.param("dask", marks=pytest.mark.nightly), pytest.param("ray", marks=pytest.mark.chaos)]
)
def test_jobs_and_plain_tasks_of_a_cluster_take_turns(pool: str, tmp_path: Path) -> None:
    """Beside jobs that never cease, plain tasks get their place again and again; beside those, jobs go on."""
    with {"dask": on_dask, "ray": on_ray}[pool](tmp_path) as (section, run_plain_task):
        with JobExecutor(4, config=Settings(cluster=ClusterSettings(**section))) as executor:
            with Crowd(executor, pool) as crowd:
                wait_for(lambda: crowd.ended >= 4)
                for _ in range(3):
                    run_plain_task()
                ended = threading.Event()
                waits: list[float] = []

                def use_the_cluster() -> None:
                    while not ended.is_set():
                        began = time.monotonic()
                        run_plain_task()
                        waits.append(time.monotonic() - began)

                others = [threading.Thread(target=use_the_cluster) for _ in range(4)]
                for other in others:
                    other.start()
                try:
                    for _ in range(3):
                        so_far, tasks = crowd.ended, len(waits)
                        wait_for(lambda so_far=so_far: crowd.ended >= so_far + 4)
                        wait_for(lambda tasks=tasks: len(waits) >= tasks + 4)
                finally:
                    ended.set()
                    for other in others:
                        other.join(PATIENCE)
