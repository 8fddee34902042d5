"""The artifacts of a run of jobs: its progress while it runs, then a table and a report."""

from __future__ import annotations

import json
import threading
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, task
from pytest_mock import MockerFixture

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import JobTaskRunner, job_report, job_task, run_jobs
from executor_adapter.prefect.reporting.background import BackgroundCalls
from tests.prefect.conftest import Api
from tests.waiting import PATIENCE, wait_for


def work(number: int) -> int:
    if number % 5 == 4:
        raise ValueError(f"number {number} | is <bad> ![seen](http://spy.example/p.png)")
    return number


@job_task(tool_name="odd", retry_attempts=0)
def job_work(number: int) -> int:
    return work(number)


@flow
def with_job_tasks() -> None:
    with JobExecutor(max_workers=2), job_report("A collection"):
        for future in [job_work.submit(number) for number in range(10)]:
            future.wait()


@flow(task_runner=JobTaskRunner(max_workers=2))
def with_plain_tasks() -> None:
    with job_report("A collection"):
        for future in [task(work, name="odd").submit(number) for number in range(10)]:
            future.wait()


@flow
def with_jobs_in_bulk() -> None:
    with JobExecutor(max_workers=2) as executor, job_report("A collection", executor=executor, total=10):
        jobs = (Job(function=work, args=(number,), tool_name="odd", retry_attempts=0) for number in range(10))
        run_jobs(jobs, executor=executor)


def artifacts_of(api: Api, flow_run_id: UUID | str) -> dict[str, Any]:
    """Return the data of the flow run's artifacts on the server, by key."""
    body = {"artifacts": {"flow_run_id": {"any_": [str(flow_run_id)]}}}
    return {artifact["key"]: artifact["data"] for artifact in api.post("/artifacts/filter", body)}


@pytest.mark.parametrize("run", [with_job_tasks, with_plain_tasks, with_jobs_in_bulk], ids=lambda run: run.name)
def test_a_run_of_jobs_has_progress_table_and_report(api: Api, run: Any) -> None:
    """Job tasks, plain tasks and run_jobs get progress, table and report, with errors that are no markup."""
    state = run(return_state=True)
    found = artifacts_of(api, state.state_details.flow_run_id)
    assert found.keys() == {"a-collection-progress", "a-collection-jobs", "a-collection-report"}
    assert found["a-collection-progress"] == 100.0
    table = found["a-collection-jobs"]
    rows = json.loads(table) if isinstance(table, str) else table
    assert [(row["state"], row["jobs"], row["retries"]) for row in rows] == [("Completed", 8, 0), ("Failed", 2, 0)]
    report = found["a-collection-report"]
    assert "10 of 10 jobs finished: 8 Completed, 2 Failed." in report
    assert "Completed: 80.0%. Retries: 0." in report
    assert report.count("number 4 \\| is &lt;bad&gt; !\\[seen\\](http&#58;//spy.example/p.png) |") == 1


def test_progress_moves_while_jobs_run(api: Api) -> None:
    """Progress is at 50 % when one of two jobs has finished."""
    half, seen = threading.Event(), []

    @job_task(pool="thread", retry_attempts=0)
    def waits(number: int) -> None:
        if number:
            assert half.wait(PATIENCE)

    @flow
    def run() -> None:
        with JobExecutor(max_workers=2), job_report("halves"):
            futures = [waits.submit(number) for number in range(2)]
            flow_run_id = futures[0].state.state_details.flow_run_id
            seen.append(wait_for(lambda: artifacts_of(api, flow_run_id).get("halves-progress")))
            wait_for(lambda: artifacts_of(api, flow_run_id)["halves-progress"] == 50.0)
            half.set()
            for future in futures:
                future.wait()

    run()


def test_a_flow_completes_if_the_server_refuses_artifacts(prefect_api: str, mocker: Any) -> None:
    """A flow whose artifacts the server refuses completes without them."""
    refused = mocker.patch(
        "executor_adapter.prefect.reporting.artifacts.create_progress_artifact", side_effect=OSError("away")
    )
    with_job_tasks()
    assert refused.called


def test_calls_in_the_background_are_made_in_order_and_none_is_lost() -> None:
    """They are made on one thread, which ends some time after the last one."""
    made: list[int] = []
    calls = BackgroundCalls("counting")
    for number in range(10_000):
        calls.put(partial(made.append, number))
    calls.wait()
    assert made == list(range(10_000))
    wait_for(lambda: all(thread.name != "counting" for thread in threading.enumerate()))


def test_calls_wait_while_the_system_starts_no_thread(mocker: MockerFixture, caplog: pytest.LogCaptureFixture) -> None:
    """What is put then is called as soon as a thread can be started, and at the latest by whoever waits for it."""
    made: list[int] = []
    calls, lines = (BackgroundCalls(name) for name in ("calls", "lines"))
    refused = mocker.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread"))
    calls.put(partial(made.append, 2))
    lines.put(partial(made.append, 1))
    lines.wait()
    assert made == [1]
    mocker.stop(refused)
    calls.put(partial(made.append, 3))
    calls.wait()
    assert made == [1, 2, 3]
    assert caplog.messages == []


def test_a_line_that_cannot_be_written_takes_no_other_along(caplog: pytest.LogCaptureFixture) -> None:
    """The lines after it are in the log of the task run, and it is said."""
    written: list[str] = []

    def broken() -> None:
        raise ValueError("no such level")

    lines = BackgroundCalls("lines")
    for line in (broken, partial(written.append, "after")):
        lines.put(line)
    lines.wait()
    assert written == ["after"]
    assert caplog.messages == ["cannot tell Prefect of a job: ValueError('no such level')"]


def test_an_interrupted_flow_makes_no_table(api: Api) -> None:
    """An interrupted flow has only seconds left, so it makes no table."""
    ids: list[UUID] = []

    @flow
    def run() -> None:
        with JobExecutor(max_workers=2), job_report("ended"):
            future = job_work.submit(1)
            future.wait()
            ids.append(future.state.state_details.flow_run_id)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert artifacts_of(api, ids[0]).keys() <= {"ended-progress"}
