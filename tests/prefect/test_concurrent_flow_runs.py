"""Concurrent flow runs in threads of one process: each has its own task runs and its own end."""

from __future__ import annotations

import concurrent.futures
import contextvars
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.runtime import flow_run

from executor_adapter import Job, JobExecutor, RetryPolicy
from executor_adapter.exceptions import JobCancelledError
from executor_adapter.prefect import JobTaskRunner, job_task, run_jobs
from executor_adapter.prefect.cancellation import flow_end, watcher
from tests.prefect.conftest import Api, cancel, own_id
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.usefixtures("prefect_api")

FLOWS = 4
ONCE = RetryPolicy(retry_attempts=0)


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "POLL_INTERVAL", 0.2)
    monkeypatch.setattr(flow_end, "QUIET_SECONDS", 1.0)


def run_at_once(*flows: Callable[[], Any]) -> list[Future[Any]]:
    """Call each flow in a thread of its own, with the caller's executor."""
    threads = ThreadPoolExecutor(len(flows))
    futures = [threads.submit(contextvars.copy_context().run, each) for each in flows]
    threads.shutdown(wait=False)
    return futures


def state_counts(api: Api, flow_run_id: UUID) -> Counter[str]:
    """Count the state_counts of the flow run's task runs."""
    return Counter(run["state_name"] for run in api.task_runs(flow_run_id))


def work(x: int) -> tuple[int, Any]:
    """Return `x` and the id of the flow run; fail for a negative `x`."""
    if x < 0:
        raise LookupError(x)
    return x, flow_run.id


@pytest.mark.parametrize(
    "runner",
    [
        pytest.param(None, id="Prefect's runner"),
        pytest.param(JobTaskRunner(max_workers=2), id="JobTaskRunner", marks=pytest.mark.nightly),
    ],
)
def test_each_flow_run_has_the_states_of_its_own_jobs(api: Api, executor: JobExecutor, runner: Any) -> None:
    """Submitted and called job tasks and `run_jobs` run in threads and processes at once."""
    together = threading.Barrier(FLOWS)
    in_thread = job_task(work, pool="thread", retry_attempts=0)
    in_process = job_task(work, pool="process", retry_attempts=0)

    @flow(task_runner=runner)
    def run(number: int) -> tuple[UUID, list[Any]]:
        own = 10 * number
        together.wait(PATIENCE)
        futures = [*in_thread.map([own, own + 1]), in_process.submit(own + 2), in_thread.submit(-1)]
        called = in_process(own + 3)
        results = run_jobs(Job(function=work, args=(x,), pool="thread", retry=ONCE) for x in (own + 4, own + 5, -1))
        values = [*(future.result() for future in futures[:-1]), called, *(result.value for result in results[:-1])]
        return own_id(), values

    running = run_at_once(*(lambda number=number: run(number) for number in range(FLOWS)))
    ended = [each.result(PATIENCE) for each in running]
    assert len({flow_run_id for flow_run_id, _ in ended}) == FLOWS
    for number, (flow_run_id, values) in enumerate(ended):
        assert values == [(10 * number + x, str(flow_run_id)) for x in range(6)]
        assert state_counts(api, flow_run_id) == {"Completed": 6, "Failed": 2}


class HeldJobs:
    """Jobs that last until they are released."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.released = threading.Event()

    def hold(self, name: str) -> None:
        self.begun.append(name)
        while not self.released.is_set():
            time.sleep(0.01)


def test_cancelling_one_flow_run_leaves_the_others(api: Api, prefect_api: str) -> None:
    """The jobs of the cancelled flow run are Cancelled, those of the other one complete."""
    held, ids = HeldJobs(), dict[str, UUID]()

    def hold(name: str) -> None:
        held.hold(name)

    task = job_task(hold, pool="thread", retry_attempts=0)

    @flow
    def run(name: str) -> None:
        ids[name] = own_id()
        task.submit(name)
        run_jobs([Job(function=hold, args=(name,), pool="thread") for _ in range(2)])

    with JobExecutor(max_workers=6):
        cancelled, other = run_at_once(lambda: run("cancelled"), lambda: run("other"))
        wait_for(lambda: len(held.begun) == 6)
        cancel(prefect_api, ids["cancelled"])
        with pytest.raises(JobCancelledError):
            cancelled.result(PATIENCE)
        wait_for(lambda: state_counts(api, ids["cancelled"]) == {"Cancelled": 3})
        wait_for(lambda: state_counts(api, ids["other"]) == {"Running": 3})
        held.released.set()
        other.result(PATIENCE)
    assert state_counts(api, ids["cancelled"]) == {"Cancelled": 3}
    assert state_counts(api, ids["other"]) == {"Completed": 3}


def test_a_cancelled_flow_run_does_not_wait_for_a_shared_job(api: Api, prefect_api: str) -> None:
    """A job with a shared dedupe_key goes on for the flow run that submitted it first."""
    held, ids, futures = HeldJobs(), dict[str, UUID](), dict[str, Any]()

    @job_task(pool="thread", retry_attempts=0, dedupe_key="the same")
    def hold(name: str) -> str:
        held.hold(name)
        return name

    @flow
    def run(name: str) -> Any:
        ids[name] = own_id()
        futures[name] = hold.submit(name)
        futures[name].wait()
        return futures[name].state.name

    with JobExecutor(max_workers=2):
        (first,) = run_at_once(lambda: run("first"))
        wait_for(lambda: held.begun)
        (second,) = run_at_once(lambda: run("second"))
        wait_for(lambda: "second" in futures)
        cancel(prefect_api, ids["second"])
        assert concurrent.futures.wait([second], PATIENCE).done, "the cancelled flow run waits"
        assert second.result() == "Cancelled"
        assert not first.done()
        held.released.set()
        assert first.result(PATIENCE) == "Completed"
    assert held.begun == ["first"]
    assert state_counts(api, ids["second"]) == {"Cancelled": 1}
    assert state_counts(api, ids["first"]) == {"Completed": 1}
