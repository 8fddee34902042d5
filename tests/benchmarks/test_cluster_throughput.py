"""Jobs on a Dask cluster of two workers, side by side with bare Dask on the same cluster and with our local pool."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import distributed
import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import ClusterSettings, DaskSettings, ExecutorSettings, Settings
from tests.benchmarks.apart import apart
from tests.benchmarks.contestants import POLICY, ours, rate_of
from tests.benchmarks.figures import ROUNDS, Figures, Report, Row, in_turn
from tests.benchmarks.functions import hang, nothing
from tests.benchmarks.trees import Tree
from tests.contract.cluster.dask_cluster import dask_cluster

JOBS = 5_000
JOBS_OF_DASK = 300
"""Tasks that bare Dask gets in a round, since it takes far longer for each."""
KILLS = 100
LARGE = 200_000_000
LIMIT = 0.1


def settings_of(settings: str) -> Settings:
    cluster = ClusterSettings(dask=DaskSettings(**json.loads(settings)), lease_idle=60.0)
    return Settings(cluster=cluster, executor=ExecutorSettings(preload=("tests.benchmarks.functions",)))


def rate_of_dask(client: distributed.Client, jobs: int) -> Callable[[], float]:
    """Return a function that measures tasks per second, from the first submission to the last result."""

    def measure() -> float:
        started = time.perf_counter()
        client.gather([client.submit(nothing, pure=False) for _ in range(jobs)])
        return jobs / (time.perf_counter() - started)

    return measure


@contextlib.contextmanager
def on_dask(settings: str) -> Iterator[Callable[[], object]]:
    """Yield a `submit` of jobs on the cluster."""
    with JobExecutor(2, config=settings_of(settings)) as executor:
        yield lambda: executor.submit(Job(function=nothing, pool="dask", max_runtime=60.0, retry=POLICY))


def measure_throughput(settings: str, address: str) -> dict[str, Figures]:
    """Measure no-op jobs per second of each contestant."""
    with (
        on_dask(settings) as submit_far,
        ours("process", 2) as submit_here,
    ):
        far, here = rate_of(submit_far, JOBS), rate_of(submit_here, JOBS)  # type: ignore[arg-type]
        far(), here()
        figures = in_turn({"ours on Dask": far, "ours here": here})
    with distributed.Client(address, set_as_default=False) as client:  # type: ignore[no-untyped-call]
        bare = rate_of_dask(client, JOBS_OF_DASK)
        bare()
        return figures | in_turn({"bare Dask": bare})


def measure_first_job(settings: str) -> Figures:
    """Measure the seconds from an executor's start to the result of its first job, on a cluster that is up."""
    values = []
    for _ in range(5):
        began = time.perf_counter()
        with JobExecutor(2, config=settings_of(settings)) as executor:
            executor.run(Job(function=nothing, pool="dask"))
            values.append(time.perf_counter() - began)
    return Figures(tuple(values))


def measure_time_to_kill(settings: str, path: Path) -> Figures:
    """Measure the seconds after the limit at which the last process of the tree was seen dead, for each kill."""
    values: list[float] = []
    with JobExecutor(2, config=settings_of(settings)) as executor:
        while len(values) < KILLS + 1:
            job = Job(function=hang, args=(str(path),), pool="dask", max_runtime=LIMIT, retry_attempts=0)
            future = executor.submit(job)
            tree = Tree.announced_at(path, future)
            if tree is not None:
                values.append(tree.wait_until_dead() - tree.began - LIMIT)
            assert isinstance(future.exception(), TimeoutError)
    return Figures(tuple(values[1:]))


def measure_large_argument(settings: str) -> dict[str, Figures]:
    """Measure the seconds of a job with a large argument on Dask and here, and those of small jobs beside it."""
    value = bytes(LARGE)
    seconds: dict[str, list[float]] = {"ours on Dask": [], "ours here": [], "neighbours": []}
    with JobExecutor(2, config=settings_of(settings)) as executor:
        for pool in ("dask", "process"):
            executor.run(Job(function=nothing, pool=pool))
        for _ in range(ROUNDS + 1):
            for name, pool in (("ours on Dask", "dask"), ("ours here", "process")):
                began = time.perf_counter()
                future = executor.submit(Job(function=len, args=(value,), pool=pool))
                while pool == "dask" and not future.done():
                    asked = time.perf_counter()
                    executor.run(Job(function=nothing, pool=pool))
                    seconds["neighbours"].append(time.perf_counter() - asked)
                future.result()
                seconds[name].append(time.perf_counter() - began)
    return {
        "ours on Dask": Figures(tuple(seconds["ours on Dask"][1:])),
        "ours here": Figures(tuple(seconds["ours here"][1:])),
        "neighbours": Figures(tuple(seconds["neighbours"])),
    }


@pytest.mark.bench
def test_a_large_argument(report: Report, tmp_path: Path) -> None:
    """An argument of 200 MB, and what small jobs wait for it meanwhile."""
    with dask_cluster(tmp_path, workers=2, threads=1) as cluster:
        measured = apart(measure_large_argument, cluster.settings())
    far, here, small = measured["ours on Dask"], measured["ours here"], measured["neighbours"]
    report.add(
        [
            Row(
                what=f"s of a job on Dask with an argument of {LARGE // 10**6} MB, beside ours here",
                ours=far.summary(".2f"),
                beside=here.summary(".2f"),
                figure=far.over(here).median,
                at_most=3.0,
                rounds={"ours": far, "ours here": here},
            ),
            Row(
                what="ms of a no-op job on Dask meanwhile: p99",
                ours=small.summary(".1f", 1e3),
                figure=small.percentile(0.99) * 1e3,
                form=".1f",
                at_most=100.0,
            ),
        ]
    )


@pytest.mark.bench
def test_cluster_throughput(report: Report, tmp_path: Path) -> None:
    """No-op jobs per second, the first job, and kills, on one cluster."""
    with dask_cluster(tmp_path, workers=2, threads=1) as cluster:
        rates = apart(measure_throughput, cluster.settings(), cluster.address)
        first = apart(measure_first_job, cluster.settings())
        kills = apart(measure_time_to_kill, cluster.settings(), tmp_path / "began")
    far = rates["ours on Dask"]
    half, most = kills.percentile(0.5) * 1e3, kills.percentile(0.99) * 1e3
    spread = kills.summary(".1f", 1e3)
    report.add(
        [
            Row(
                what=f"no-op jobs/s on two Dask workers, beside {peer}",
                ours=far.summary(),
                beside=rates[peer].summary(),
                figure=far.over(rates[peer]).median,
                at_least=target,
                rounds={"ours": far, peer: rates[peer]},
            )
            for peer, target in (("bare Dask", 10.0), ("ours here", 0.4))
        ]
        + [
            Row(
                what="s until the first job on a Dask cluster that is up",
                ours=first.summary(".2f"),
                figure=first.median,
                at_most=1.0,
                rounds={"ours": first},
            ),
            Row(what=f"ms from limit to tree dead on Dask, {KILLS} kills: p50", ours=spread, figure=half, at_most=10.0),
            Row(
                what=f"ms from limit to tree dead on Dask, {KILLS} kills: p99", ours=spread, figure=most, at_most=100.0
            ),
        ]
    )
