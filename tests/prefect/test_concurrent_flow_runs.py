"""Flow runs side by side, in threads of one process: each has its own task runs, and its own end."""

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
from executor_adapter.prefect import JobTaskRunner, job_task, run_jobs, wait_until_recorded
from executor_adapter.prefect.cancellation import flow_end, watcher
from tests.prefect.conftest import Api, Wait, cancel, own_id

pytestmark = pytest.mark.usefixtures("prefect_api")

FLOWS = 4
ONCE = RetryPolicy(retry_attempts=0)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(flow_end, "QUIET_SECONDS", 1.0)


def at_once(*flows: Callable[[], Any]) -> list[Future[Any]]:
    """Call each in a thread of its own, with the caller's executor."""
    threads = ThreadPoolExecutor(len(flows))
    futures = [threads.submit(contextvars.copy_context().run, each) for each in flows]
    threads.shutdown(wait=False)
    return futures


def states(api: Api, flow_run_id: UUID) -> Counter[str]:
    return Counter(run["state_name"] for run in api.task_runs(flow_run_id))


def work(x: int) -> tuple[int, Any]:
    if x < 0:
        raise LookupError(x)
    return x, flow_run.id


@pytest.mark.parametrize("runner", [None, JobTaskRunner(max_workers=2)], ids=["Prefect's runner", "JobTaskRunner"])
def test_each_has_the_states_of_its_own_jobs(api: Api, runner: Any) -> None:
    """Job tasks that are submitted and called, in threads and processes, and `run_jobs`, all at the same time."""
    together = threading.Barrier(FLOWS)
    in_thread = job_task(work, pool="thread", retry_attempts=0)
    in_process = job_task(work, pool="process", retry_attempts=0)

    @flow(task_runner=runner)
    def run(number: int) -> tuple[UUID, list[Any]]:
        own = 10 * number
        together.wait(60)
        futures = [*in_thread.map([own, own + 1]), in_process.submit(own + 2), in_thread.submit(-1)]
        called = in_process(own + 3)
        results = run_jobs(Job(function=work, args=(x,), pool="thread", retry=ONCE) for x in (own + 4, own + 5, -1))
        values = [*(future.result() for future in futures[:-1]), called, *(result.value for result in results[:-1])]
        assert wait_until_recorded().complete
        return own_id(), values

    with JobExecutor(max_workers=3):
        ended = [each.result(120) for each in at_once(*(lambda number=number: run(number) for number in range(FLOWS)))]
    assert len({flow_run_id for flow_run_id, _ in ended}) == FLOWS
    for number, (flow_run_id, values) in enumerate(ended):
        assert values == [(10 * number + x, str(flow_run_id)) for x in range(6)]
        assert states(api, flow_run_id) == {"Completed": 6, "Failed": 2}


class Held:
    """Jobs that last until they are let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.free = threading.Event()

    def hold(self, name: str) -> None:
        self.begun.append(name)
        while not self.free.is_set():
            time.sleep(0.01)


def test_a_cancel_of_one_leaves_the_others(api: Api, prefect_api: str, wait_for: Wait) -> None:
    held, ids = Held(), dict[str, UUID]()

    def hold(name: str) -> None:
        held.hold(name)

    task = job_task(hold, pool="thread", retry_attempts=0)

    @flow
    def run(name: str) -> None:
        ids[name] = own_id()
        task.submit(name)
        run_jobs([Job(function=hold, args=(name,), pool="thread") for _ in range(2)])

    with JobExecutor(max_workers=6):
        cancelled, other = at_once(lambda: run("cancelled"), lambda: run("other"))
        wait_for(lambda: len(held.begun) == 6)
        cancel(prefect_api, ids["cancelled"])
        with pytest.raises(JobCancelledError):
            cancelled.result(30)
        assert wait_until_recorded(ids["cancelled"]).complete
        wait_for(lambda: states(api, ids["other"]) == {"Running": 3})
        held.free.set()
        other.result(60)
    assert states(api, ids["cancelled"]) == {"Cancelled": 3}
    assert states(api, ids["other"]) == {"Completed": 3}


def test_a_cancelled_flow_run_waits_for_no_twin_of_another(api: Api, prefect_api: str, wait_for: Wait) -> None:
    """A job of one dedupe_key runs on for the flow run that had it first."""
    held, ids, futures = Held(), dict[str, UUID](), dict[str, Any]()

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
        (first,) = at_once(lambda: run("first"))
        wait_for(lambda: held.begun)
        (second,) = at_once(lambda: run("second"))
        wait_for(lambda: "second" in futures)
        cancel(prefect_api, ids["second"])
        assert concurrent.futures.wait([second], 30).done, "the cancelled flow run waits"
        assert second.result() == "Cancelled"
        assert not first.done()
        held.free.set()
        assert first.result(30) == "Completed"
    assert held.begun == ["first"]
    assert states(api, ids["second"]) == {"Cancelled": 1}
    assert states(api, ids["first"]) == {"Completed": 1}
