"""Tests jobs with `resources` on real clusters of Dask and Ray: each is started on a lease of its shape."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest

from executor_adapter import Job, JobExecutor, JobFuture, JobStatus, RetryPolicy
from executor_adapter.config import ClusterSettings, DaskSettings, RaySettings, Settings
from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.pools.cluster.pool import RemotePool
from tests.contract.cluster import functions
from tests.contract.cluster.conftest import Runs
from tests.contract.cluster.dask_cluster import DaskCluster, dask_cluster
from tests.contract.cluster.ray_cluster import RayCluster, ray_cluster
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for

GIB = 1 << 30
AT_ONCE = RetryPolicy(retry_delay=0.0, jitter=0.0)


class OnDask:
    """A Dask cluster under test."""

    name = "dask"

    def __init__(self, cluster: DaskCluster) -> None:
        self.cluster = cluster

    def add_node(self, **resources: float) -> Any:
        """Start a worker with two threads."""
        amounts = " ".join(f"{name}={amount}" for name, amount in resources.items())
        worker = self.cluster.start_worker(2, resources=amounts)
        self.cluster.wait_for_workers(sum(each.poll() is None for each in self.cluster.workers))
        return worker

    def kill_node(self, node: Any) -> None:
        node.kill()
        node.wait()

    def settings(self) -> dict[str, Any]:
        return {"dask": DaskSettings(**json.loads(self.cluster.settings()))}


class OnRay:
    """A Ray cluster under test."""

    name = "ray"

    def __init__(self, cluster: RayCluster) -> None:
        self.cluster = cluster

    def add_node(self, **resources: float) -> Any:
        """Start a node with two processors."""
        own = {"GPU": "num_gpus", "memory": "memory"}
        options = {own[name]: amount for name, amount in resources.items() if name in own}
        others = {name: amount for name, amount in resources.items() if name not in own}
        return self.cluster.add_node(2, **options, resources=others)

    def kill_node(self, node: Any) -> None:
        self.cluster.remove_node(node)

    def settings(self) -> dict[str, Any]:
        return {"ray": RaySettings(**json.loads(self.cluster.settings()))}


@pytest.fixture(scope="module", params=["dask", pytest.param("ray", marks=pytest.mark.chaos)])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnDask | OnRay]:
    """A cluster of two nodes: one has a GPU, 1 GiB and a license, and one has nothing but two slots."""
    if request.param == "dask":
        with dask_cluster(tmp_path_factory.mktemp("dask"), workers=1) as workers:
            dask = OnDask(workers)
            dask.add_node(GPU=1, memory=GIB, license=1)
            yield dask
    else:
        with ray_cluster(nodes=0) as nodes:
            ray = OnRay(nodes)
            ray.add_node(memory=GIB >> 1)
            ray.add_node(GPU=1, memory=GIB, license=1)
            yield ray


def executor_of(engine: OnDask | OnRay, max_workers: int, **settings: Any) -> JobExecutor:
    return JobExecutor(max_workers, config=Settings(cluster=ClusterSettings(**engine.settings(), **settings)))


def job_until(engine: OnDask | OnRay, gate: Path, resources: dict[str, Any] | None = None, **fields: Any) -> Job:
    """Return a job that runs until a file exists."""
    options: dict[str, Any] = {"pool": engine.name, "resources": resources, "retry_attempts": 0, **fields}
    return Job(function=functions.gpus_until, args=(str(gate),), **options)


def leases_of(executor: JobExecutor) -> list[int]:
    pool = supervisor_of(executor).pools.made.get("dask") or supervisor_of(executor).pools.made["ray"]
    assert isinstance(pool, RemotePool)
    return [lease.number for agent in pool.agents for lease in agent.leases if lease.shape]


def is_running(future: JobFuture) -> bool:
    return future.job.status is JobStatus.RUNNING


def test_jobs_that_need_the_one_gpu_take_turns_while_others_run(engine: OnDask | OnRay, tmp_path: Path) -> None:
    """Two jobs for one GPU never overlap, each sees its id, and the one that waits keeps no slot from other jobs."""
    with executor_of(engine, 2) as executor:
        gate, open_gate = tmp_path / "gate", tmp_path / "open"
        open_gate.touch()
        on_gpu = [executor.submit(job_until(engine, gate, {"GPU": 1})) for _ in range(2)]
        wait_for(lambda: any(map(is_running, on_gpu)))
        plain = [executor.submit(job_until(engine, open_gate)) for _ in range(3)]
        for future in plain:
            assert future.result(timeout=PATIENCE)[0] in (None, "")
        assert sum(map(is_running, on_gpu)) == 1
        assert executor.stats().waiting_for_resources == 1
        gate.touch()
        (first, *spans), (second, *others) = (future.result(timeout=PATIENCE) for future in on_gpu)
    assert (first, second) == ("0", "0")
    early, late = sorted([spans, others])
    assert early[1] < late[0]


@pytest.mark.nightly
def test_a_job_with_a_lease_takes_the_slot_of_one_without(engine: OnDask | OnRay, tmp_path: Path) -> None:
    """Where plain jobs hold all slots of the executor and wait for room on the cluster, a GPU that is free is used."""
    with executor_of(engine, 6, lease_idle=60.0) as executor:
        gate, gpu_gate, last_gate = tmp_path / "gate", tmp_path / "gpu", tmp_path / "last"
        last_gate.touch()
        kept = executor.submit(job_until(engine, gate, {"license": 1}))
        first = executor.submit(job_until(engine, gpu_gate, {"GPU": 1}))
        wait_for(lambda: is_running(kept) and is_running(first))
        plain = [executor.submit(job_until(engine, gate)) for _ in range(8)]
        wait_for(lambda: sum(map(is_running, plain)) == 2)
        again = executor.submit(job_until(engine, last_gate, {"GPU": 1}))
        gpu_gate.touch()
        assert again.result(timeout=PATIENCE)[0] == "0"
        assert sum(map(is_running, plain)) == 2
        assert not any(future.done() for future in plain)
        gate.touch()
        for future in (kept, first, *plain):
            future.result(timeout=PATIENCE)


@pytest.mark.nightly
def test_an_idle_lease_leaves_its_place_to_another_shape(engine: OnDask | OnRay, tmp_path: Path) -> None:
    """Where jobs of one shape wait for a place that an idle lease of another one has, that goes back within seconds."""
    with executor_of(engine, 6, lease_idle=600.0) as executor:
        gate, open_gate = tmp_path / "gate", tmp_path / "open"
        # Both run at once, so that neither lease is idle while the other shape waits.
        shaped = [executor.submit(job_until(engine, open_gate, needs)) for needs in ({"GPU": 1}, {"license": 1})]
        wait_for(lambda: all(map(is_running, shaped)))
        open_gate.touch()
        for future in shaped:
            future.result(timeout=PATIENCE)
        assert len(leases_of(executor)) == 2
        plain = [executor.submit(job_until(engine, gate)) for _ in range(4)]
        wait_for(lambda: all(map(is_running, plain)))
        on_gpu = executor.submit(job_until(engine, open_gate, {"GPU": 1}))
        gate.touch()
        assert on_gpu.result(timeout=PATIENCE)[0] == "0"
        for future in plain:
            future.result(timeout=PATIENCE)


class Crowd:
    """Keeps so many jobs of one shape in an executor, each submitted as one of them ends, until it is told to stop."""

    def __init__(self, executor: JobExecutor, engine: OnDask | OnRay, size: int, resources: dict[str, Any] | None):
        self.ended = 0
        self._executor = executor
        self._fields: dict[str, Any] = {"function": time.sleep, "args": (0.05,), "pool": engine.name}
        self._fields |= {"resources": resources, "retry_attempts": 0}
        self._goes_on = True
        for _ in range(size):
            self._submit()

    def _submit(self, done: JobFuture | None = None) -> None:
        self.ended += done is not None
        if self._goes_on:
            self._executor.submit(Job(**self._fields)).add_done_callback(self._submit)

    def stop(self) -> None:
        self._goes_on = False


CROWDS: dict[str, tuple[dict[str, Any] | None, dict[str, Any] | None]] = {
    "plain jobs": (None, {"GPU": 1}),
    "another shape": ({"GPU": 1, "license": 1}, {"GPU": 1}),
    "a shape that takes all slots": ({"CPU": 1}, None),
    "plain jobs on all of a node": (None, {"CPU": 2}),
}
"""What the jobs need that never cease, and what the one that waits needs."""


@pytest.mark.nightly
@pytest.mark.parametrize(
    "kind",
    [
        "plain jobs",
        "another shape",
        "a shape that takes all slots",
        pytest.param("plain jobs on all of a node", marks=pytest.mark.chaos),
    ],
)
def test_jobs_that_never_cease_keep_nothing_from_another_shape(
    engine: OnDask | OnRay, kind: str, tmp_path: Path
) -> None:
    """A job gets its turn though others of another shape keep its node busy without end, and they go on after it."""
    others, needs = CROWDS[kind]
    if kind == "plain jobs on all of a node" and engine.name == "dask":
        pytest.skip("workers of Dask have no more processors than they were started with")
    with executor_of(engine, 8) as executor:
        crowd = Crowd(executor, engine, 20, others)
        try:
            wait_for(lambda: crowd.ended > 20)
            gate = tmp_path / "gate"
            gate.touch()
            executor.submit(job_until(engine, gate, needs)).result(timeout=PATIENCE)
            so_far = crowd.ended
            wait_for(lambda: crowd.ended > so_far + 20)
        finally:
            crowd.stop()


@pytest.mark.nightly
def test_memory_is_counted_by_the_cluster(engine: OnDask | OnRay, tmp_path: Path) -> None:
    """Of two jobs that need most of the memory of a node, one runs, and the other one waits for it."""
    with executor_of(engine, 4) as executor:
        gate = tmp_path / "gate"
        futures = [executor.submit(job_until(engine, gate, {"memory": "600MiB"})) for _ in range(2)]
        wait_for(lambda: any(map(is_running, futures)))
        small = executor.submit(job_until(engine, gate, {"memory": "100MiB"}))
        wait_for(lambda: is_running(small))
        assert sum(map(is_running, futures)) == 1
        gate.touch()
        spans = sorted(future.result(timeout=PATIENCE)[1:] for future in futures)
        assert spans[0][1] < spans[1][0]


def test_what_no_node_has_is_said_and_fails(
    engine: OnDask | OnRay, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that no node could hold waits with a warning, fails after `node_timeout`, and holds up no other job."""
    with executor_of(engine, 2, node_timeout=2.0) as executor, caplog.at_level(logging.WARNING):
        gate = tmp_path / "gate"
        gate.touch()
        large = executor.submit(job_until(engine, gate, {"GPU": 8}))
        unknown = executor.submit(job_until(engine, gate, {"bananas": 1}))
        # It is retried where its agent takes longer to start.
        executor.submit(job_until(engine, gate, retry_attempts=20, retry_delay=0.0)).result(timeout=PATIENCE)
        with pytest.raises(WorkerUnavailableError, match="has GPU 8: the most that one has is GPU 1"):
            large.result(timeout=PATIENCE)
        with pytest.raises(WorkerUnavailableError, match="has bananas 1: none has bananas"):
            unknown.result(timeout=PATIENCE)
        assert executor.submit(job_until(engine, gate, {"GPU": 1})).result(timeout=PATIENCE)[0] == "0"
    (warning,) = [record.getMessage() for record in caplog.records if "GPU 8" in record.getMessage()]
    assert "fails after 2 s (cluster.node_timeout)" in warning


@pytest.mark.nightly
def test_a_job_waits_for_a_node_that_can_hold_it(engine: OnDask | OnRay, tmp_path: Path) -> None:
    """Where a node joins in time that has what a job needs, the job runs there."""
    with executor_of(engine, 2) as executor:
        gate = tmp_path / "gate"
        gate.touch()
        future = executor.submit(job_until(engine, gate, {"telescope": 1}))
        executor.submit(job_until(engine, gate)).result(timeout=PATIENCE)
        assert not future.done()
        node = engine.add_node(telescope=1)
        future.result(timeout=PATIENCE)
    engine.kill_node(node)


@pytest.mark.nightly
def test_idle_leases_of_each_shape_go_back(engine: OnDask | OnRay, tmp_path: Path) -> None:
    """A GPU that no job uses goes back within `lease_idle`, so that another program gets it."""
    gate = tmp_path / "gate"
    gate.touch()
    with executor_of(engine, 2, lease_idle=0.5) as first, executor_of(engine, 2) as second:
        for needs in ({"GPU": 1}, {"license": 1}, {"GPU": 1, "license": 1}):
            first.submit(job_until(engine, gate, needs)).result(timeout=PATIENCE)
        wait_for(lambda: not leases_of(first))
        assert second.submit(job_until(engine, gate, {"GPU": 1})).result(timeout=PATIENCE)[0] == "0"


def test_a_cancelled_job_asks_for_nothing(engine: OnDask | OnRay, tmp_path: Path) -> None:
    """When a job that waits for a GPU is cancelled, no lease is obtained for it."""
    with executor_of(engine, 4) as executor:
        gate = tmp_path / "gate"
        holder, *others = (executor.submit(job_until(engine, gate, {"GPU": 1})) for _ in range(3))
        wait_for(lambda: is_running(holder))
        for other in others:
            assert other.cancel()
        wait_for(lambda: executor.stats().waiting_for_resources == 0)
        gate.touch()
        holder.result(timeout=PATIENCE)
        assert len(leases_of(executor)) == 1


@pytest.mark.nightly
def test_the_job_of_a_lost_gpu_runs_on_another(engine: OnDask | OnRay, runs: Runs) -> None:
    """When the node of a shaped lease is killed, its job is NODE_LOST, and runs once another lease is granted."""
    node = engine.add_node(tpu=1)
    with executor_of(engine, 2) as executor:
        fields: dict[str, Any] = {"pool": engine.name, "resources": {"tpu": 1}, "retry": AT_ONCE}
        job = Job(function=functions.note_times, args=(str(runs.folder), 2.0), **fields)
        future = executor.submit(job)
        wait_for(runs.agents)
        engine.kill_node(node)
        another = engine.add_node(tpu=1)
        future.result(timeout=PATIENCE)
        assert [attempt.error_code for attempt in job.attempts] == ["NODE_LOST", None]
        first, second = runs.spans()
        assert second[0] > first[1]
    engine.kill_node(another)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adaptive_cluster_sees_the_demand_of_each_shape() -> None:
    """An adaptive cluster of no workers gets some for jobs that need a license, and loses them afterwards."""
    engine: Any = distributed
    options = {"n_workers": 0, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with engine.LocalCluster(**options, resources={"license": 1}) as cluster:
        cluster.adapt(minimum=0, maximum=2, interval="200ms", wait_count=2)
        dask = DaskSettings(address=cluster.scheduler_address)
        with JobExecutor(2, config=Settings(cluster=ClusterSettings(dask=dask, lease_idle=1.0))) as executor:
            jobs = [Job(function=time.sleep, args=(1.0,), pool="dask", resources={"license": 1}) for _ in range(4)]
            for future in [executor.submit(job) for job in jobs]:
                future.result(timeout=PATIENCE)
            wait_for(lambda: not cluster.scheduler_info["workers"])
