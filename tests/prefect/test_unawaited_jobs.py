"""Job tasks that a flow did not wait for end with the flow."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from prefect import flow
from pytest_mock import MockerFixture

from executor_adapter import JobExecutor, JobStatus
from executor_adapter.prefect import job_task
from executor_adapter.prefect.engine.job_run import JobRun
from tests.prefect.conftest import Api
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.usefixtures("prefect_api", "executor")


@job_task(retry_attempts=0)
def double(x: int) -> int:
    return 2 * x


def test_a_flow_called_while_an_exception_is_handled_waits_for_running_jobs() -> None:
    """A flow called in an `except` block waits for running jobs: the handled exception does not end it."""
    begun = threading.Event()

    @job_task(pool="thread", retry_attempts=0)
    def slow() -> None:
        begun.set()
        time.sleep(0.3)

    @flow
    def run() -> None:
        futures.append(slow.submit())
        assert begun.wait(PATIENCE)

    futures: list[Any] = []
    try:
        raise LookupError
    except LookupError:
        run()
    assert futures[0].state.name == "Completed"


def test_at_the_end_of_a_flow_running_jobs_are_waited_for_and_queued_ones_cancelled(
    api: Api, mocker: MockerFixture
) -> None:
    """The end of a flow waits for running jobs and cancels queued ones, and the server records both.

    A task run learns of it before its input ends: else it would be NotReady.
    """
    begun, ended = threading.Event(), threading.Event()
    end_early = JobRun.end_early

    def let_it_end(job_run: JobRun, *, cancel_running: bool) -> None:
        end_early(job_run, cancel_running=cancel_running)
        if job_run.driver is not None and job_run.driver.job.status is not JobStatus.RUNNING:
            futures[2].wait()

    @job_task(pool="thread", retry_attempts=0)
    def slow() -> str:
        begun.set()
        assert ended.wait(PATIENCE)
        return "done"

    @flow
    def run() -> None:
        futures.append(slow.submit())
        assert begun.wait(PATIENCE)
        futures.append(slow.submit())
        futures.append(double.submit(futures[1]))
        mocker.patch.object(JobRun, "end_early", let_it_end)
        ending.start()

    def end_when_others_are_cancelled() -> None:
        wait_for(lambda: [future.state.name for future in futures[1:]] == ["Cancelled", "Cancelled"])
        ended.set()

    futures: list[Any] = []
    ending = threading.Thread(target=end_when_others_are_cancelled)
    with JobExecutor(max_workers=1):
        run()
    ending.join()
    assert [future.state.name for future in futures] == ["Completed", "Cancelled", "Cancelled"]
    assert api.state_names(futures[1].task_run_id) == ["Pending", "Cancelled"]


def test_a_flow_that_is_interrupted_cancels_its_jobs(api: Api) -> None:
    """An interrupted flow cancels its jobs, running ones too, and does not wait for them."""
    begun = threading.Event()

    @job_task(pool="coroutine", retry_attempts=0)
    async def slow() -> None:
        begun.set()
        await asyncio.sleep(3600)

    @flow
    def run() -> None:
        futures.append(slow.submit())
        assert begun.wait(PATIENCE)
        raise KeyboardInterrupt

    futures: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        run()
    assert futures[0].state.name == "Cancelled"
    wait_for(lambda: api.state_names(futures[0].task_run_id) == ["Pending", "Running", "Cancelled"])


@pytest.mark.parametrize("refused", [(1, 2), (2,)], ids=["none", "no further one"])
def test_a_flow_that_gets_no_thread_for_an_engine_runs_it_in_its_own(
    refused: tuple[int, ...], mocker: MockerFixture
) -> None:
    """Nothing is lost, runs twice, or keeps the flow from its end."""
    begin, begun, calls = threading.Thread.start, [], []

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("task-engine"):
            begun.append(thread)
            if len(begun) in refused:
                raise RuntimeError("can't start new thread")
        begin(thread)

    @job_task(pool="thread", retry_attempts=0)
    def call(x: int) -> int:
        calls.append(x)
        return x

    @flow
    def run() -> list[int]:
        return [future.result() for future in [call.submit(x) for x in range(3)]]

    mocker.patch.object(threading.Thread, "start", start)
    with JobExecutor(max_workers=1):
        assert run() == [0, 1, 2]
    assert sorted(calls) == [0, 1, 2]
