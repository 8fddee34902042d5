"""Jobs on a cluster of two nodes, side by side with the bare engine on the same cluster and with our local pool."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import ClusterSettings, DaskSettings, ExecutorSettings, RaySettings, Settings
from executor_adapter.job.pool_names import PoolName
from tests.benchmarks.apart import apart
from tests.benchmarks.clusters import ENGINES, EngineName, cluster_of
from tests.benchmarks.contestants import POLICY, ours, rate_of
from tests.benchmarks.figures import ROUNDS, Figures, Report, Row, in_turn
from tests.benchmarks.functions import hang, nothing
from tests.benchmarks.trees import Tree

JOBS = 5_000
JOBS_OF_ENGINE: dict[EngineName, int] = {"dask": 300, "ray": 1_000}
"""Tasks that the bare engine gets in a round, since it takes far longer for each."""
TIMES_BARE: dict[EngineName, float] = {"dask": 10.0, "ray": 5.0}
FIRST_JOB: dict[EngineName, float] = {"dask": 1.0, "ray": 3.0}
NODES_OF: dict[EngineName, str] = {"dask": "Dask workers", "ray": "Ray nodes"}
KILLS = 100
LARGE = 200_000_000
LIMIT = 0.1


def settings_of(engine: EngineName, address: str) -> Settings:
    section: dict[str, Any] = {engine: (DaskSettings if engine == "dask" else RaySettings)(address=address)}
    cluster = ClusterSettings(**section, lease_idle=60.0)
    return Settings(cluster=cluster, executor=ExecutorSettings(preload=("tests.benchmarks.functions",)))


@contextlib.contextmanager
def bare(engine: EngineName, address: str) -> Iterator[Callable[[], float]]:
    """Yield a function that measures tasks of the engine per second, from the first submission to the last result."""
    count = JOBS_OF_ENGINE[engine]

    def measure(run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        return count / (time.perf_counter() - started)

    if engine == "dask":
        import distributed

        with distributed.Client(address, set_as_default=False) as client:  # type: ignore[no-untyped-call]
            yield lambda: measure(lambda: client.gather([client.submit(nothing, pure=False) for _ in range(count)]))
    else:
        import ray

        ray.init(address, log_to_driver=False, configure_logging=False)
        task = ray.remote(num_cpus=1)(nothing)
        yield lambda: measure(lambda: ray.get([task.remote() for _ in range(count)]))
        ray.shutdown()


def measure_throughput(engine: EngineName, address: str) -> dict[str, Figures]:
    """Measure no-op jobs per second of each, warm: ours have half of the cluster's slots, and the bare engine all.

    While the engine has its turn its tasks wait for our slots, which go back. So before each round of ours a run that
    does not count gets them again.
    """
    with (
        bare(engine, address) as of_engine,
        JobExecutor(2, config=settings_of(engine, address)) as executor,
        ours("process", 2) as submit_here,
    ):
        far = rate_of(lambda: executor.submit(Job(function=nothing, pool=engine, max_runtime=60.0, retry=POLICY)), JOBS)
        here = rate_of(submit_here, JOBS)
        far(), here(), of_engine()
        contestants = {"ours there": lambda: (far(), far())[1], "ours here": here, f"bare {engine.title()}": of_engine}
        return in_turn(contestants)


def measure_first_job(engine: EngineName, address: str) -> Figures:
    """Measure the seconds from an executor's start to the result of its first job, on a cluster that is up."""
    values = []
    for _ in range(5):
        began = time.perf_counter()
        with JobExecutor(2, config=settings_of(engine, address)) as executor:
            executor.run(Job(function=nothing, pool=engine))
            values.append(time.perf_counter() - began)
    return Figures(tuple(values))


def measure_time_to_kill(engine: EngineName, address: str, path: Path) -> Figures:
    """Measure the seconds after the limit at which the last process of the tree was seen dead, for each kill."""
    values: list[float] = []
    with JobExecutor(2, config=settings_of(engine, address)) as executor:
        while len(values) < KILLS + 1:
            job = Job(function=hang, args=(str(path),), pool=engine, max_runtime=LIMIT, retry_attempts=0)
            future = executor.submit(job)
            tree = Tree.announced_at(path, future)
            if tree is not None:
                values.append(tree.wait_until_dead() - tree.began - LIMIT)
            assert isinstance(future.exception(), TimeoutError)
    return Figures(tuple(values[1:]))


def measure_large_argument(engine: EngineName, address: str) -> dict[str, Figures]:
    """Measure the seconds of a job with a large argument there and here, and those of the small jobs beside it there.

    In both places small jobs of the same pool run meanwhile, one after the other.
    """
    value = bytes(LARGE)
    seconds: dict[str, list[float]] = {"there": [], "here": []}
    beside: dict[str, list[float]] = {"there": [], "here": []}
    with JobExecutor(2, config=settings_of(engine, address)) as executor:
        pools: dict[str, PoolName] = {"there": engine, "here": "process"}
        for pool in pools.values():
            executor.run(Job(function=nothing, pool=pool))
        both = [executor.submit(Job(function=time.sleep, args=(1,), pool=engine)) for _ in range(2)]
        for each in both:  # Both slots are there before the first round.
            each.result()
        for _ in range(ROUNDS + 1):
            for name, pool in pools.items():
                began = time.perf_counter()
                future = executor.submit(Job(function=len, args=(value,), pool=pool))
                while not future.done():
                    asked = time.perf_counter()
                    executor.run(Job(function=nothing, pool=pool))
                    beside[name].append(time.perf_counter() - asked)
                future.result()
                seconds[name].append(time.perf_counter() - began)
    return {
        "there": Figures(tuple(seconds["there"][1:])),
        "here": Figures(tuple(seconds["here"][1:])),
        "neighbours": Figures(tuple(beside["there"])),
    }


@pytest.mark.bench
@pytest.mark.parametrize("engine", ENGINES)
def test_a_large_argument(engine: EngineName, report: Report, tmp_path: Path) -> None:
    """An argument of 200 MB, and what small jobs wait for it meanwhile."""
    with cluster_of(engine, tmp_path, slots=1) as (address, _):
        measured = apart(measure_large_argument, engine, address)
    there, here, small = measured["there"], measured["here"], measured["neighbours"]
    name = engine.title()
    report.add(
        [
            Row(
                what=f"s of a job on {name} with an argument of {LARGE // 10**6} MB, beside ours here",
                ours=there.summary(".2f"),
                beside=here.summary(".2f"),
                figure=there.over(here).median,
                at_most=3.0,
                rounds={"ours": there, "ours here": here},
            ),
            Row(
                what=f"ms of a no-op job on {name} meanwhile: p99",
                ours=small.summary(".1f", 1e3),
                figure=small.percentile(0.99) * 1e3,
                form=".1f",
                at_most=100.0,
            ),
        ]
    )


@pytest.mark.bench
@pytest.mark.parametrize("engine", ENGINES)
def test_cluster_throughput(engine: EngineName, report: Report, tmp_path: Path) -> None:
    """No-op jobs per second, the first job, and kills, on one cluster of two nodes with two slots each."""
    with cluster_of(engine, tmp_path) as (address, _):
        rates = apart(measure_throughput, engine, address)
        first = apart(measure_first_job, engine, address)
        kills = apart(measure_time_to_kill, engine, address, tmp_path / "began")
    name, far = engine.title(), rates["ours there"]
    half, most = kills.percentile(0.5) * 1e3, kills.percentile(0.99) * 1e3
    spread = kills.summary(".1f", 1e3)
    to_kill = f"ms from limit to tree dead on {name}, {KILLS} kills"
    report.add(
        [
            Row(
                what=f"no-op jobs/s on two {NODES_OF[engine]}, beside {peer}",
                ours=far.summary(),
                beside=rates[peer].summary(),
                figure=far.over(rates[peer]).median,
                at_least=target,
                rounds={"ours": far, peer: rates[peer]},
            )
            for peer, target in ((f"bare {name}", TIMES_BARE[engine]), ("ours here", 0.4))
        ]
        + [
            Row(
                what=f"s until the first job on a {name} cluster that is up",
                ours=first.summary(".2f"),
                figure=first.median,
                at_most=FIRST_JOB[engine],
                rounds={"ours": first},
            ),
            Row(what=f"{to_kill}: p50", ours=spread, figure=half, at_most=10.0),
            Row(what=f"{to_kill}: p99", ours=spread, figure=most, at_most=100.0),
        ]
    )
