"""run_jobs: each job is a task run of the flow, with its history, its log and its true end."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest
from prefect import flow, get_run_logger, tags
from prefect.runtime import flow_run, task_run

from executor_adapter import Job, JobExecutor, JobResult, JobStatus, RetryPolicy, current_job
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.prefect import PrefectMirror, arun_jobs, run_jobs
from executor_adapter.prefect.mirror.server_api import server_name
from executor_adapter.prefect.mirror.spool import Spool
from tests.prefect.conftest import Api, Wait
from tests.prefect.fake_cloud import at_cloud
from tests.prefect.fake_server import FakeServer

pytestmark = pytest.mark.usefixtures("prefect_api", "executor")

ONCE = RetryPolicy(retry_attempts=1, retry_delay=0.1)
POOLS = ("process", "thread")


def fail(attempts: int) -> str:
    """Fail in so many attempts."""
    if current_job().attempt <= attempts:
        raise ConnectionError("down")
    return "up"


def speak(lines: int, end: str = "") -> None:
    print("printed")
    get_run_logger().info("logged")
    for number in range(lines):
        print("line", number)
    if end == "crash":
        os.write(2, b"last words\n")
        os.abort()


def look() -> dict[str, Any]:
    return {
        "flow_run": str(flow_run.id),
        "task_run": str(task_run.id),
        "name": task_run.name,
        "run_count": task_run.run_count,
        "tags": sorted(task_run.tags),
        "parameters": dict(task_run.parameters),
    }


def look_at(number: int, *, shown: str) -> dict[str, Any]:
    return look()


def in_flow(jobs: Any, **how: Any) -> tuple[UUID, list[JobResult]]:
    """Run the jobs in a flow of their own: its run's id, and the results."""

    @flow
    def run() -> tuple[UUID, list[JobResult]]:
        return UUID(str(flow_run.id)), run_jobs(jobs() if callable(jobs) else jobs, **how)

    return run()


def by_key(api: Api, flow_run_id: UUID) -> dict[str, dict[str, Any]]:
    return {run["dynamic_key"]: run for run in api.task_runs(flow_run_id)}


@pytest.mark.parametrize("pool", POOLS)
def test_every_state_of_every_job_is_there_when_it_returns(api: Api, pool: Any) -> None:
    """Completed, retried, failed for good: with the states on the way, the run count, and the job's own times."""
    jobs = [
        Job(function=fail, args=(failures,), job_id=job_id, retry=ONCE, pool=pool)
        for job_id, failures in (("good", 0), ("retried", 1), ("bad", 2))
    ]
    mirror = PrefectMirror(history="full")
    flow_run_id, results = in_flow(jobs, mirror=mirror)
    assert [(result.job_id, result.status, result.attempts) for result in results] == [
        ("good", JobStatus.COMPLETED, 1),
        ("retried", JobStatus.COMPLETED, 2),
        ("bad", JobStatus.FAILED, 2),
    ]
    assert results[0].value == "up"
    assert str(results[2].error) == "down"
    runs = by_key(api, flow_run_id)
    assert {key: (run["state_name"], run["run_count"]) for key, run in runs.items()} == {
        "good": ("Completed", 1),
        "retried": ("Completed", 2),
        "bad": ("Failed", 2),
    }
    assert api.state_names(runs["good"]["id"]) == ["Pending", "Running", "Completed"]
    assert api.state_names(runs["bad"]["id"]) == ["Pending", "Running", "AwaitingRetry", "Retrying", "Failed"]
    awaiting, last = api.states(runs["bad"]["id"])[2], api.states(runs["bad"]["id"])[-1]
    assert awaiting["message"] == "attempt 1 of 2: NETWORK_ERROR: down"
    assert awaiting["state_details"]["scheduled_time"] > awaiting["timestamp"]
    assert last["message"] == "NETWORK_ERROR: down"
    for job in jobs:
        run = runs[job.job_id]
        assert run["id"] == str(uuid5(flow_run_id, job.job_id))
        assert _seconds(run["start_time"]) == pytest.approx(job.started_at.timestamp(), abs=1e-5)  # type: ignore[union-attr]
        assert _seconds(run["end_time"]) == pytest.approx(job.completed_at.timestamp(), abs=1e-3)  # type: ignore[union-attr]
    assert mirror.close().complete


def _seconds(told: str) -> float:
    return datetime.fromisoformat(told).timestamp()


def test_failures_of_every_kind_have_their_names(api: Api) -> None:
    """A limit, a crash and a refused job: each a result, none an exception."""
    jobs = [
        Job(function=time.sleep, args=(60,), max_runtime=0.2, job_id="slow", pool="process", retry_attempts=0),
        Job(function=os.abort, job_id="crashed", pool="process", retry_attempts=0),
        Job(function=print, args=(threading.Lock(),), job_id="refused", pool="process"),
        Job(function="nowhere:at_all", job_id="absent", pool="process"),
    ]
    flow_run_id, results = in_flow(jobs)
    assert [result.error_code for result in results] == [
        "TIMEOUT_ERROR",
        "WORKER_CRASHED",
        "SERIALIZATION_ERROR",
        "CONFIGURATION_ERROR",
    ]
    names = {key: run["state_name"] for key, run in by_key(api, flow_run_id).items()}
    assert names == {"slow": "TimedOut", "crashed": "Crashed", "refused": "Failed", "absent": "Failed"}


def test_many_jobs_with_failures_are_all_accounted_for(api: Api) -> None:
    """400, of which 5 % fail once and 1 % for good: none stuck, none lost, however little time each takes."""

    def jobs() -> Iterator[Job]:
        for number in range(400):
            failures = 2 if number % 100 == 7 else number % 20 == 0
            yield Job(function=fail, args=(failures,), job_id=f"job-{number}", pool="process", retry=ONCE)

    flow_run_id, results = in_flow(jobs)
    assert Counter(result.status for result in results) == {JobStatus.COMPLETED: 396, JobStatus.FAILED: 4}
    assert [result.job_id for result in results] == [f"job-{number}" for number in range(400)]
    runs = [run for offset in (0, 200) for run in api.task_runs(flow_run_id, offset=offset)]
    assert Counter((run["state_name"], run["run_count"]) for run in runs) == {
        ("Completed", 1): 376,
        ("Completed", 2): 20,
        ("Failed", 2): 4,
    }
    assert all(run["start_time"] <= run["end_time"] for run in runs)


@pytest.mark.parametrize("pool", POOLS)
def test_a_function_sees_its_task_run(api: Api, pool: Any) -> None:
    """prefect.runtime and the tags, as in a job task, in this process and in another."""

    @flow
    def run() -> list[JobResult]:
        with tags("nightly"):
            job = Job(function=look_at, args=(7,), kwargs={"shown": "x"}, job_id="looker", pool=pool)
            return run_jobs([job, Job(function=look, pool=pool)])

    seen = run()[0].value
    assert (seen["run_count"], seen["tags"], seen["parameters"]) == (1, ["nightly"], {"number": 7, "shown": "x"})
    assert seen["task_run"] == str(uuid5(UUID(seen["flow_run"]), "looker"))
    assert api.task_run(seen["task_run"])["name"] == seen["name"] == "look_at-looker"
    assert api.task_run(seen["task_run"])["tags"] == ["nightly"]


@pytest.mark.parametrize("pool", POOLS)
def test_what_a_job_says_stands_in_its_log(api: Api, pool: Any, wait_for: Wait) -> None:
    """Printed and logged lines, in order; the traceback where it failed."""
    jobs = [
        Job(function=speak, args=(300,), job_id="speaker", pool=pool),
        Job(function=fail, args=(1,), job_id="failing", pool=pool, retry_attempts=0),
    ]
    flow_run_id, _ = in_flow(jobs)
    speaker, failing = (str(uuid5(flow_run_id, job.job_id)) for job in jobs)
    wait_for(lambda: len(api.messages(speaker, offset=200)) == 102)
    told = api.messages(speaker) + api.messages(speaker, offset=200)
    assert [line for line in told if line.startswith("line")] == [f"line {number}" for number in range(300)]
    assert told.index("printed") < told.index("line 0")
    assert "logged" in told
    wait_for(lambda: any("Traceback" in message and "down" in message for message in api.messages(failing)))


def test_the_last_words_of_a_crashed_job_stand_in_its_log(api: Api, wait_for: Wait) -> None:
    jobs = [Job(function=speak, args=(50, "crash"), job_id="crashing", pool="process", retry_attempts=0)]
    flow_run_id, _ = in_flow(jobs)
    wait_for(lambda: "last words" in api.messages(uuid5(flow_run_id, "crashing")))
    assert "line 49" in api.messages(uuid5(flow_run_id, "crashing"))


def test_an_id_that_is_there_twice_is_refused_before_anything_starts(scratch: Path) -> None:
    """Of a list; and of a later call in the same flow run, whose task run it would be too."""
    mark = scratch / "mark"
    twice = [Job(function=mark.touch, job_id=job_id) for job_id in ("one", "two", "one")]
    with pytest.raises(InvalidJobError, match="'one'"):
        in_flow(twice)
    assert not mark.exists()

    @flow
    def run() -> None:
        run_jobs([Job(function=dict, job_id="one")])
        with pytest.raises(InvalidJobError, match="'one'"):
            run_jobs([Job(function=dict, job_id="one")])

    run()


@pytest.mark.parametrize("many", [Job(function=dict), [dict], 5])
def test_what_are_no_jobs_is_refused_before_anything_starts(executor: JobExecutor, many: Any) -> None:
    with pytest.raises(InvalidJobError, match=r"give a list|make one, Job\(function=dict"):
        in_flow(many)
    assert executor.jobs() == []


def test_an_id_that_comes_twice_from_an_iterator_ends_the_run(executor: JobExecutor) -> None:
    def jobs() -> Iterator[Job]:
        yield Job(function=time.sleep, args=(60,), pool="process", job_id="one")
        yield Job(function=dict, job_id="two")
        yield Job(function=dict, job_id="one")

    with pytest.raises(InvalidJobError, match="'one'"):
        in_flow(jobs)
    assert executor.jobs() == []


def test_jobs_are_drawn_as_others_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long iterable is not drawn ahead, so the memory that it takes is bounded."""
    monkeypatch.setattr("executor_adapter.prefect.bulk.run_jobs.MAX_LIVE_JOBS", 10)
    ended, furthest = itertools.count(), [0]
    over = [0]

    def work() -> None:
        over[0] = next(ended) + 1

    def jobs() -> Iterator[Job]:
        for number in range(200):
            furthest[0] = max(furthest[0], number - over[0])
            yield Job(function=work, pool="thread")

    assert len(in_flow(jobs)[1]) == 200
    assert furthest[0] <= 12


def test_jobs_that_wait_are_pending_from_their_submission(api: Api, executor: JobExecutor, wait_for: Wait) -> None:
    gate = threading.Event()
    ids: list[UUID] = []

    @flow
    def run() -> None:
        ids.append(UUID(str(flow_run.id)))
        jobs = (Job(function=gate.wait, pool="thread", job_id=f"job-{number}") for number in range(20))
        run_jobs(jobs, executor=executor)

    def names() -> Counter[str]:
        return Counter(run["state_name"] for run in api.task_runs(ids[0])) if ids else Counter()

    running = threading.Thread(target=run)
    running.start()
    try:
        wait_for(lambda: names() == {"Running": 2, "Pending": 18})
    finally:
        gate.set()
        running.join()
    assert names() == {"Completed": 20}


def test_leaving_by_an_exception_ends_its_jobs_and_says_so(api: Api, executor: JobExecutor) -> None:
    """Those of this run alone: another's job in the same executor goes on."""
    other = executor.submit(Job(function=time.sleep, args=(1,), pool="thread"))
    seen: list[UUID] = []

    def jobs() -> Iterator[Job]:
        for number in range(10):
            yield Job(function=time.sleep, args=(60,), pool="process", job_id=f"job-{number}")
        raise KeyError("the source is broken")

    @flow
    def run() -> None:
        seen.append(UUID(str(flow_run.id)))
        run_jobs(jobs())

    with pytest.raises(KeyError):
        run()
    assert {live.job_id for live in executor.jobs()} <= {other.job.job_id}
    assert Counter(run["state_name"] for run in api.task_runs(seen[0])) == {"Cancelled": 10}
    assert other.result() is None


def test_in_an_async_flow_it_is_awaited(api: Api) -> None:
    """run_jobs says so, instead of blocking the event loop; arun_jobs lets it go on."""

    @flow
    async def run() -> tuple[UUID, list[JobResult], int]:
        with pytest.raises(RuntimeError, match="await arun_jobs"):
            run_jobs([])
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.01)

        turning = asyncio.create_task(turn())
        results = await arun_jobs([Job(function=time.sleep, args=(0.5,), pool="thread", job_id="one")])
        turning.cancel()
        return UUID(str(flow_run.id)), results, turns

    flow_run_id, results, turns = asyncio.run(run())  # type: ignore[arg-type]
    assert (results[0].status, turns > 10) == (JobStatus.COMPLETED, True)
    assert by_key(api, flow_run_id)["one"]["state_name"] == "Completed"


def test_cancelling_the_await_ends_the_jobs(api: Api, executor: JobExecutor) -> None:
    seen: list[UUID] = []

    @flow
    async def run() -> None:
        seen.append(UUID(str(flow_run.id)))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await arun_jobs([Job(function=time.sleep, args=(60,), pool="process", job_id="one")])

    asyncio.run(run())  # type: ignore[arg-type]
    assert executor.jobs() == []
    assert by_key(api, seen[0])["one"]["state_name"] == "Cancelled"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("own", [False, True])
def test_cancelling_the_await_ends_it_while_the_server_is_told(monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    """All jobs are over then. The server gets what it gets at a cancel, and the disk the rest."""

    class Deaf(FakeServer):
        def record(self, most: int | None = None) -> None: ...

    monkeypatch.setattr("executor_adapter.prefect.mirror.timeouts.HURRIED_CLOSE_SECONDS", 0.5)
    monkeypatch.setattr("executor_adapter.prefect.mirror.timeouts.MIN_HURRIED_CLOSE_SECONDS", 0.5)

    @flow
    async def run() -> None:
        with at_cloud(Deaf()) as cloud:
            mirror = PrefectMirror() if own else None
            running = asyncio.create_task(arun_jobs([Job(function=dict, pool="thread")], mirror=mirror))
            while not any(told["event"].endswith("Completed") for told in cloud.recorder.queue):
                await asyncio.sleep(0.01)
            began = time.monotonic()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert time.monotonic() - began < 5
            if mirror is not None:
                mirror.close(0.0)
            assert not Spool(server_name()).is_empty

    asyncio.run(run())  # type: ignore[arg-type]


def test_outside_a_flow_it_is_refused(executor: JobExecutor) -> None:
    with pytest.raises(RuntimeError, match="call it in a @flow"):
        run_jobs([Job(function=dict)])
    assert executor.jobs() == []


def test_passed_states_are_left_out_where_that_was_asked_for(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """history="final": how it ended, with its counts and times; and how many states were left out, said once."""
    jobs = [Job(function=dict, pool="thread", job_id=f"job-{number}") for number in range(50)]
    with caplog.at_level(logging.INFO, "executor_adapter.prefect"), PrefectMirror(history="final") as mirror:
        flow_run_id, _ = in_flow(jobs, mirror=mirror)
    report = mirror.report()
    assert (report.complete, report.recorded) == (True, 50)
    runs = api.task_runs(flow_run_id)
    told = sum(len(api.states(run["id"])) for run in runs)
    assert told == 150 - report.omitted
    assert {(run["state_name"], run["run_count"]) for run in runs} == {("Completed", 1)}
    assert all(run["start_time"] <= run["end_time"] for run in runs)
    if report.omitted:
        assert sum("left out" in message for message in caplog.messages) == 1
