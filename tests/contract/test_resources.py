"""Tests `Job.resources`; but for GPUs, the contract is the same for every pool of this machine."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy, RetryRule, ToolLimit
from executor_adapter.config import Settings
from executor_adapter.exceptions import InvalidJobError
from tests.contract import functions
from tests.contract.conftest import MakeExecutor, MakeJob
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for

CLUSTERS = ("ssh", "dask", "ray")


@pytest.fixture(autouse=True)
def on_this_machine(request: pytest.FixtureRequest) -> None:
    """Leave out the pools of clusters, before one is started: what such jobs need is counted there, or refused."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("pool") in CLUSTERS:
        pytest.skip("capacity is of one machine")


def test_what_runs_at_once_never_exceeds_the_capacity(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """Jobs of all sizes and two resources: at each moment the sums fit, and all jobs run."""
    executor = make_executor(6, capacity={"CPU": 4, "license": 2})
    sizes = random.Random(7)
    jobs = [
        make_job(
            functions.times_of_a_sleep,
            0.01,
            resources={"CPU": sizes.choice([0.5, 1, 2, 4]), "license": each % 2 or 0.5},
        )
        for each in range(60)
    ]
    futures = [executor.submit(job) for job in jobs]
    runs = [(*future.result(PATIENCE), future.job.resources or {}) for future in futures]
    assert executor.stats().waiting_for_resources == 0
    for moment, _, _ in runs:
        for name, most in (("CPU", 4), ("license", 2)):
            assert sum(needs.get(name, 0) for began, ended, needs in runs if began <= moment < ended) <= most


def test_a_job_that_waits_holds_up_no_other_shape(
    make_executor: MakeExecutor, make_job: MakeJob, tmp_path: Path
) -> None:
    """While one job waits for a license, jobs that need none or something else run; cancelling it frees its turn."""
    executor = make_executor(4, capacity={"CPU": 4, "license": 2})
    gate = tmp_path / "gate"
    holder = executor.submit(make_job(functions.wait_for_file, str(gate), resources={"license": 1}))
    wait_for(lambda: holder.job.status is JobStatus.RUNNING)
    large = executor.submit(make_job(functions.add, 1, 2, resources={"license": 2}))
    small = executor.submit(make_job(functions.add, 2, 2, resources={"license": 1}))
    assert executor.submit(make_job(functions.add, 3, 2)).result(PATIENCE) == 5
    assert executor.submit(make_job(functions.add, 4, 2, resources={"CPU": 4})).result(PATIENCE) == 6
    assert executor.stats().waiting_for_resources == 2
    assert large.cancel()
    assert small.result(PATIENCE) == 4  # It waited for `large` only, so it starts while the holder still runs.
    gate.touch()
    holder.result(PATIENCE)


def test_each_attempt_takes_its_resources_anew(make_executor: MakeExecutor, make_job: MakeJob, tmp_path: Path) -> None:
    """While a job waits for its retry, its resources are free for others."""
    executor = make_executor(2, capacity={"license": 1})
    path = str(tmp_path / "calls")
    fields = {"resources": {"license": 1}, "tool_name": "api"}
    failing = executor.submit(make_job(functions.fail_until, path, 2, retry_attempts=1, retry_delay=60.0, **fields))
    wait_for(lambda: failing.job.status is JobStatus.RETRYING)
    assert executor.submit(make_job(functions.add, 1, 2, **fields)).result(PATIENCE) == 3
    assert failing.cancel()


def test_a_tool_at_its_limit_holds_no_resources(make_executor: MakeExecutor, make_job: MakeJob, tmp_path: Path) -> None:
    """A job that its tool holds back leaves its resources to others, and takes them when its turn comes."""
    limits = {"api": ToolLimit(max_concurrent=1)}
    executor = make_executor(4, capacity={"license": 2}, tool_limits=limits)
    gate = tmp_path / "gate"
    holder = executor.submit(make_job(functions.wait_for_file, str(gate), tool_name="api"))
    wait_for(lambda: holder.job.status is JobStatus.RUNNING)
    held_back = [
        executor.submit(make_job(functions.add, each, tool_name="api", resources={"license": 2})) for each in range(3)
    ]
    others = [executor.submit(make_job(functions.add, each, resources={"license": 2})) for each in range(3)]
    assert [other.result(PATIENCE) for other in others] == [1, 2, 3]
    gate.touch()
    assert [future.result(PATIENCE) for future in held_back] == [1, 2, 3]


@pytest.mark.parametrize("pool", ["thread"], indirect=True)
def test_a_cancelled_job_that_waits_to_run_alone_gives_its_resources_back(
    make_executor: MakeExecutor, make_job: MakeJob, tmp_path: Path
) -> None:
    """A retry that has its license, and waits until nothing else runs, gives the license back when it is cancelled.

    It gets so far only where its license is held by a job that waits for another one, and so takes no slot.
    """
    executor = make_executor(3, capacity={"license": 1})
    fails, holds, runs = (tmp_path / name for name in ("fails", "holds", "runs"))
    needs = {"resources": {"license": 1}}
    alone = RetryPolicy(retry_delay=0.01, rules=(RetryRule(codes=("NETWORK_ERROR",), alone=True),))
    retried = executor.submit(make_job(functions.lose_connection_at, str(fails), retry=alone, **needs))
    wait_for(lambda: retried.job.status is JobStatus.RUNNING)
    holder = executor.drive(make_job(functions.wait_for_file, str(holds), **needs))
    granted = holder.acquire()
    wait_for(lambda: executor.stats().waiting_for_resources == 1)
    fails.touch()
    granted.result(PATIENCE)
    held = holder.attempt()
    supervisor = supervisor_of(executor)
    wait_for(lambda: holder.job.live.assignment is not None)
    supervisor.call_soon(supervisor.lend_slot, holder.job.live.assignment, True)
    wait_for(lambda: executor.stats().waiting_for_resources == 1)
    other = executor.submit(make_job(functions.wait_for_file, str(runs)))
    wait_for(lambda: other.job.status is JobStatus.RUNNING)
    holds.touch()
    held.result(PATIENCE)
    holder.complete()
    wait_for(lambda: executor.stats().waiting_for_resources == 0)
    assert (retried.job.attempt, retried.done()) == (1, False)
    assert retried.cancel()
    assert executor.submit(make_job(functions.add, 1, 2, **needs)).result(PATIENCE) == 3
    assert other.running()
    runs.touch()
    other.result(PATIENCE)


def test_more_than_the_capacity_is_refused_at_submit(executor: JobExecutor, make_job: MakeJob) -> None:
    """A job that could never start is refused when it is submitted, and takes no place."""
    with pytest.raises(InvalidJobError, match="needs CPU 5000"):
        executor.submit(make_job(functions.add, 1, 2, resources={"CPU": 5000}))
    with pytest.raises(InvalidJobError, match="has no bananas"):
        executor.submit(make_job(functions.add, 1, 2, resources={"bananas": 1}))
    assert executor.jobs() == []


def gpu_job(method: str, *args: object, amount: float = 1, **fields: object) -> Job:
    return Job(function=getattr(functions, method), args=args, pool="process", resources={"GPU": amount}, **fields)  # type: ignore[arg-type]


@pytest.fixture(params=["guardian", "spawn"])
def processes(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, make_executor: MakeExecutor
) -> JobExecutor:
    monkeypatch.setenv("EXECUTOR_ADAPTER_EXECUTOR__START_METHOD", request.param)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    return make_executor(3)


def test_each_job_sees_its_own_gpus(processes: JobExecutor, tmp_path: Path) -> None:
    """CUDA_VISIBLE_DEVICES names the GPUs of the attempt, before its module is imported; each has a new process."""
    gates = [tmp_path / f"{number}" for number in range(2)]
    first, second = (processes.submit(gpu_job("gpu_and_process", str(gate))) for gate in gates)
    third = processes.submit(gpu_job("gpu_and_process", str(gates[0])))
    wait_for(lambda: len(processes.running()) == 2)
    gates[0].touch()
    gpu, pid = first.result(PATIENCE)
    third_gpu, third_pid = third.result(PATIENCE)
    gates[1].touch()
    other_gpu, other_pid = second.result(PATIENCE)
    assert third_gpu == gpu
    assert {gpu, other_gpu} == {"3", "5"}
    assert len({pid, third_pid, other_pid}) == 3
    plain = processes.submit(Job(function=functions.gpu_and_process, args=(str(gates[0]),), pool="process"))
    plain_gpu, plain_pid = plain.result(PATIENCE)
    assert plain_gpu == "3,5"
    assert plain_pid not in {pid, third_pid, other_pid}
    assert processes.submit(gpu_job("gpu_and_process", str(gates[0]), amount=2)).result(PATIENCE)[0] == "3,5"


def test_a_killed_worker_gives_its_gpu_back(processes: JobExecutor, tmp_path: Path) -> None:
    """A GPU is free again when the worker that had it was killed, and for the job's own retry."""
    gate = tmp_path / "gate"
    killed = processes.submit(gpu_job("gpu_and_process", str(gate), amount=2, retry_attempts=1, retry_delay=0.0))
    written = gate.with_suffix(".pid")
    wait_for(lambda: written.exists() and written.read_text())
    os.kill(int(written.read_text()), signal.SIGKILL)
    gate.touch()
    assert killed.result(PATIENCE)[0] == "3,5"
    assert killed.job.attempt == 2
    assert processes.submit(gpu_job("gpu_and_process", str(gate))).result(PATIENCE)[0] in {"3", "5"}


@pytest.mark.parametrize("pool", ["thread", "coroutine"])
def test_gpus_need_a_process(pool: str) -> None:
    """Jobs that share this process cannot have a CUDA_VISIBLE_DEVICES of their own, and the refusal says so."""
    function = functions.sleep_on_loop if pool == "coroutine" else functions.add
    job = Job(function=function, args=(1,), resources={"GPU": 1})
    with JobExecutor(config=Settings(), capacity={"GPU": 1}) as executor:
        with pytest.raises(InvalidJobError, match=f"pool='{pool}' has none of its own: use pool='process'"):
            executor.submit(job)
