"""run_jobs: each job is a task run of the flow, with its history, its log and its true end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import anyio
import pytest
from prefect import flow, get_run_logger, tags
from prefect.runtime import flow_run, task_run
from pytest_mock import MockerFixture

from executor_adapter import Job, JobExecutor, JobResult, JobStatus, RetryPolicy, current_job
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.prefect import PrefectMirror, arun_jobs, job_task, run_jobs
from executor_adapter.prefect.mirror.outbox import OutboxFile
from executor_adapter.prefect.mirror.server import server_name
from tests.contract.slow_code import return_only_there
from tests.prefect.conftest import Api
from tests.prefect.fake_cloud import at_cloud
from tests.prefect.fake_server import FakeServer
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.usefixtures("prefect_api", "executor")

ONCE = RetryPolicy(retry_attempts=1, retry_delay=0.1)
POOLS = ("process", "thread")


def fail(attempts: int) -> str:
    """Fail in the first `attempts` attempts."""
    if current_job().attempt <= attempts:
        raise ConnectionError("down")
    return "up"


def ignore_sigterm(path: str) -> None:
    """Run until SIGKILL."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(path).touch()
    time.sleep(PATIENCE)


def write_output(lines: int, end: str = "") -> None:
    """Print and log lines, then crash if `end` says so."""
    print("printed")
    get_run_logger().info("logged")
    for number in range(lines):
        print("line", number)
    if end == "crash":
        os.write(2, b"last words\n")
        os.abort()


def describe_task_run() -> dict[str, Any]:
    """Return what prefect.runtime shows of the task run."""
    return {
        "flow_run": str(flow_run.id),
        "task_run": str(task_run.id),
        "name": task_run.name,
        "run_count": task_run.run_count,
        "tags": sorted(task_run.tags),
        "parameters": dict(task_run.parameters),
    }


def describe_with_arguments(number: int, *, shown: str) -> dict[str, Any]:
    """Do the same as `describe_task_run`, with arguments."""
    return describe_task_run()


def run_in_flow(jobs: Any, *, log_prints: bool = False, **how: Any) -> tuple[UUID, list[JobResult]]:
    """Run the jobs in a flow of their own; return the id of its run, and the results."""

    @flow(log_prints=log_prints)
    def run() -> tuple[UUID, list[JobResult]]:
        return UUID(str(flow_run.id)), run_jobs(jobs() if callable(jobs) else jobs, **how)

    return run()


def task_runs_by_key(api: Api, flow_run_id: UUID) -> dict[str, dict[str, Any]]:
    """Return the task runs of the flow run by their dynamic key."""
    return {run["dynamic_key"]: run for run in api.task_runs(flow_run_id)}


@pytest.mark.parametrize("pool", POOLS)
def test_every_state_of_every_job_is_recorded_when_run_jobs_returns(api: Api, pool: Any) -> None:
    """Completed, retried and failed jobs have all their states, run counts and the job's own times."""
    jobs = [
        Job(function=fail, args=(failures,), job_id=job_id, retry=ONCE, pool=pool)
        for job_id, failures in (("good", 0), ("retried", 1), ("bad", 2))
    ]
    mirror = PrefectMirror(history="full")
    flow_run_id, results = run_in_flow(jobs, mirror=mirror)
    assert [(result.job_id, result.status, result.attempts) for result in results] == [
        ("good", JobStatus.COMPLETED, 1),
        ("retried", JobStatus.COMPLETED, 2),
        ("bad", JobStatus.FAILED, 2),
    ]
    assert results[0].value == "up"
    assert str(results[2].error) == "down"
    runs = task_runs_by_key(api, flow_run_id)
    assert {key: (run["state_name"], run["run_count"]) for key, run in runs.items()} == {
        "good": ("Completed", 1),
        "retried": ("Completed", 2),
        "bad": ("Failed", 2),
    }
    assert api.state_names(runs["good"]["id"]) == ["Pending", "Running", "Completed"]
    assert api.state_names(runs["bad"]["id"]) == ["Pending", "Running", "AwaitingRetry", "Retrying", "Failed"]
    awaiting, last = api.states(runs["bad"]["id"])[2], api.states(runs["bad"]["id"])[-1]
    assert awaiting["message"] == "attempt 1 of 2: NETWORK_ERROR: ConnectionError: down"
    assert awaiting["state_details"]["scheduled_time"] > awaiting["timestamp"]
    assert last["message"] == "NETWORK_ERROR: ConnectionError: down"
    for job in jobs:
        run = runs[job.job_id]
        assert run["id"] == str(uuid5(flow_run_id, job.job_id))
        assert _seconds(run["start_time"]) == pytest.approx(job.started_at.timestamp(), abs=1e-5)  # type: ignore[union-attr]
        assert _seconds(run["end_time"]) == pytest.approx(job.completed_at.timestamp(), abs=1e-3)  # type: ignore[union-attr]
    assert mirror.close().complete


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def test_each_kind_of_failure_has_its_state(api: Api) -> None:
    """A job past a limit, a crashed job and a refused job each give a result and do not raise.

    A job whose result cannot be loaded is Completed: its function has returned.
    """
    jobs = [
        Job(function=time.sleep, args=(60,), max_runtime=0.2, job_id="slow", pool="process", retry_attempts=0),
        Job(function=os.abort, job_id="crashed", pool="process", retry_attempts=0),
        Job(function=print, args=(threading.Lock(),), job_id="refused", pool="process"),
        Job(function="nowhere:at_all", job_id="absent", pool="process"),
        Job(function=return_only_there, job_id="unloadable", pool="process"),
    ]
    flow_run_id, results = run_in_flow(jobs)
    assert [result.error_code for result in results] == [
        "TIMEOUT_ERROR",
        "WORKER_CRASHED",
        "SERIALIZATION_ERROR",
        "CONFIGURATION_ERROR",
        "SERIALIZATION_ERROR",
    ]
    names = {key: run["state_name"] for key, run in task_runs_by_key(api, flow_run_id).items()}
    ended = {"slow": "TimedOut", "crashed": "Crashed", "refused": "Failed", "absent": "Failed"}
    assert names == ended | {"unloadable": "Completed"}


def test_many_jobs_with_failures_are_all_accounted_for(api: Api) -> None:
    """Of 200 short jobs, 5 % fail once and 1 % for good: none hangs and none is lost."""

    def jobs() -> Iterator[Job]:
        for number in range(200):
            failures = 2 if number % 100 == 7 else number % 20 == 0
            yield Job(function=fail, args=(failures,), job_id=f"job-{number}", pool="process", retry=ONCE)

    flow_run_id, results = run_in_flow(jobs)
    assert Counter(result.status for result in results) == {JobStatus.COMPLETED: 198, JobStatus.FAILED: 2}
    assert [result.job_id for result in results] == [f"job-{number}" for number in range(200)]
    runs = api.task_runs(flow_run_id)
    assert Counter((run["state_name"], run["run_count"]) for run in runs) == {
        ("Completed", 1): 188,
        ("Completed", 2): 10,
        ("Failed", 2): 2,
    }
    assert all(run["start_time"] <= run["end_time"] for run in runs)


@pytest.mark.parametrize("pool", POOLS)
def test_a_function_sees_its_task_run(api: Api, pool: Any) -> None:
    """prefect.runtime and the tags work as in a job task, in this process and in a worker."""

    @flow
    def run() -> list[JobResult]:
        with tags("nightly"):
            job = Job(function=describe_with_arguments, args=(7,), kwargs={"shown": "x"}, job_id="looker", pool=pool)
            return run_jobs([job, Job(function=describe_task_run, pool=pool)])

    seen = run()[0].value
    assert (seen["run_count"], seen["tags"], seen["parameters"]) == (1, ["nightly"], {"number": 7, "shown": "x"})
    assert seen["task_run"] == str(uuid5(UUID(seen["flow_run"]), "looker"))
    assert api.task_run(seen["task_run"])["name"] == seen["name"] == "describe_with_arguments-looker"
    assert api.task_run(seen["task_run"])["tags"] == ["nightly"]


@pytest.mark.parametrize("pool", POOLS)
def test_the_output_of_a_job_is_in_its_log(api: Api, pool: Any) -> None:
    """With log_prints on the flow, printed and logged lines are in order; a failure is there with its traceback."""
    jobs = [
        Job(function=write_output, args=(300,), job_id="writer", pool=pool),
        Job(function=fail, args=(1,), job_id="failing", pool=pool, retry_attempts=0),
    ]
    flow_run_id, _ = run_in_flow(jobs, log_prints=True)
    writer, failing = (str(uuid5(flow_run_id, job.job_id)) for job in jobs)
    wait_for(lambda: len(api.messages(writer, offset=200)) == 102)
    lines = api.messages(writer) + api.messages(writer, offset=200)
    assert [line for line in lines if line.startswith("line")] == [f"line {number}" for number in range(300)]
    assert lines.index("printed") < lines.index("line 0")
    assert "logged" in lines
    wait_for(lambda: any("Traceback" in message and "down" in message for message in api.messages(failing)))


def test_the_last_output_of_a_crashed_job_is_in_its_log(api: Api) -> None:
    """Lines before a crash, and what it wrote to stderr last, are in the log, with log_prints on the flow."""
    jobs = [Job(function=write_output, args=(50, "crash"), job_id="crashing", pool="process", retry_attempts=0)]
    flow_run_id, _ = run_in_flow(jobs, log_prints=True)
    wait_for(lambda: "last words" in api.messages(uuid5(flow_run_id, "crashing")))
    assert "line 49" in api.messages(uuid5(flow_run_id, "crashing"))


def test_a_repeated_id_in_a_list_is_refused_before_any_job_starts(scratch: Path) -> None:
    """An id may not come twice in one list, nor in two calls of the same flow run."""
    mark = scratch / "mark"
    twice = [Job(function=mark.touch, job_id=job_id) for job_id in ("one", "two", "one")]
    with pytest.raises(InvalidJobError, match="'one'"):
        run_in_flow(twice)
    assert not mark.exists()

    @flow
    def run() -> None:
        run_jobs([Job(function=dict, job_id="one")])
        with pytest.raises(InvalidJobError, match="'one'"):
            run_jobs([Job(function=dict, job_id="one")])

    run()


@pytest.mark.parametrize("many", [Job(function=dict), [dict], 5])
def test_objects_that_are_not_jobs_are_refused_before_any_job_starts(executor: JobExecutor, many: Any) -> None:
    """One job, a list of functions or a number raises; the message says what to give."""
    with pytest.raises(InvalidJobError, match=r"pass a list|make one, Job\(function=dict"):
        run_in_flow(many)
    assert executor.jobs() == []


def test_a_repeated_id_from_an_iterator_ends_the_run(executor: JobExecutor) -> None:
    """A repeated id raises when it is drawn, and the jobs that run are ended."""

    def jobs() -> Iterator[Job]:
        yield Job(function=time.sleep, args=(60,), pool="process", job_id="one")
        yield Job(function=dict, job_id="two")
        yield Job(function=dict, job_id="one")

    with pytest.raises(InvalidJobError, match="'one'"):
        run_in_flow(jobs)
    assert executor.jobs() == []


def test_jobs_are_drawn_as_others_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long iterable is not drawn ahead, so it takes bounded memory."""
    monkeypatch.setattr("executor_adapter.prefect.bulk.run_jobs.MAX_LIVE_JOBS", 10)
    ended, most_ahead = itertools.count(), [0]
    over = [0]

    def work() -> None:
        over[0] = next(ended) + 1

    def jobs() -> Iterator[Job]:
        for number in range(60):
            most_ahead[0] = max(most_ahead[0], number - over[0])
            yield Job(function=work, pool="thread")

    assert len(run_in_flow(jobs)[1]) == 60
    assert most_ahead[0] <= 12


def test_waiting_jobs_are_pending_from_their_submission(api: Api, executor: JobExecutor) -> None:
    """Of 20 jobs on two workers, 18 are Pending while two are Running."""
    released = threading.Event()
    ids: list[UUID] = []

    @flow
    def run() -> None:
        ids.append(UUID(str(flow_run.id)))
        jobs = (Job(function=released.wait, pool="thread", job_id=f"job-{number}") for number in range(20))
        run_jobs(jobs, executor=executor)

    def names() -> Counter[str]:
        return Counter(run["state_name"] for run in api.task_runs(ids[0])) if ids else Counter()

    running = threading.Thread(target=run)
    running.start()
    try:
        wait_for(lambda: names() == {"Running": 2, "Pending": 18})
    finally:
        released.set()
        running.join()
    assert names() == {"Completed": 20}


def test_an_exception_ends_the_jobs_of_the_run_as_cancelled(api: Api, executor: JobExecutor) -> None:
    """An exception cancels the jobs of this run only: another job in the same executor goes on."""
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


def test_an_exception_waits_for_a_job_that_takes_long_to_end(
    executor: JobExecutor, mocker: MockerFixture, tmp_path: Path
) -> None:
    """However long a cancelled job takes to be dead, as on a node that is silent, its end is not called lost."""
    module = importlib.import_module("executor_adapter.prefect.bulk.run_jobs")
    # Any limit of time passes before the job has ended.
    mocker.patch.object(module, "wait", lambda futures, timeout=None: timeout or wait(futures))
    job = Job(function=ignore_sigterm, args=(str(tmp_path / "runs"),), pool="process")

    def jobs() -> Iterator[Job]:
        yield job
        wait_for((tmp_path / "runs").exists)
        raise KeyError("the source is broken")

    with pytest.raises(KeyError):
        run_in_flow(jobs)
    assert job.status is JobStatus.CANCELLED


def test_arun_jobs_does_not_block_the_event_loop(api: Api) -> None:
    """In an async flow run_jobs refuses and names arun_jobs, which lets the loop go on."""

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
    assert task_runs_by_key(api, flow_run_id)["one"]["state_name"] == "Completed"


def test_arun_jobs_takes_no_thread_of_the_event_loop() -> None:
    """More calls than the event loop has threads are awaited at once: here each waits for the other's job."""
    both = threading.Barrier(2)

    @flow
    async def run() -> list[JobStatus]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        jobs = [Job(function=both.wait, args=(PATIENCE,), pool="thread", retry_attempts=0) for _ in range(2)]
        ended = await asyncio.gather(*(arun_jobs([job]) for job in jobs))
        return [results[0].status for results in ended]

    assert asyncio.run(run()) == 2 * [JobStatus.COMPLETED]  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def timeout_of_a_flow(seconds: float) -> AsyncIterator[None]:
    """Cancel the block as a flow's own timeout does: again at each turn of the loop."""
    with anyio.fail_after(seconds):
        yield


@pytest.mark.parametrize("timeout", [asyncio.timeout, timeout_of_a_flow])
def test_cancelling_arun_jobs_ends_the_jobs(api: Api, executor: JobExecutor, timeout: Any) -> None:
    """After a timeout around arun_jobs, a flow's own too, no job runs, and the task run is Cancelled."""
    seen: list[UUID] = []

    @flow
    async def run() -> None:
        seen.append(UUID(str(flow_run.id)))
        with pytest.raises(TimeoutError):
            async with timeout(1.0):
                await arun_jobs([Job(function=time.sleep, args=(60,), pool="process", job_id="one")])

    asyncio.run(run())  # type: ignore[arg-type]
    assert executor.jobs() == []
    assert task_runs_by_key(api, seen[0])["one"]["state_name"] == "Cancelled"


def test_cancelling_arun_jobs_ends_its_wait_for_a_place() -> None:
    """Cancelling arun_jobs ends it while the executor's queue is full, and what fills that is another program's."""
    release = threading.Event()

    @flow
    async def run() -> None:
        with JobExecutor(1, max_pending=1) as executor:
            others = [executor.submit(Job(function=release.wait, args=(PATIENCE,), pool="thread")) for _ in range(2)]
            running = asyncio.create_task(arun_jobs([Job(function=dict, pool="thread")], executor=executor))
            await asyncio.sleep(0.1)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert not any(other.done() for other in others)
            release.set()

    asyncio.run(run())  # type: ignore[arg-type]


@pytest.mark.parametrize("own", [False, True])
def test_cancelling_arun_jobs_ends_its_wait_for_the_server(monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    """Cancelling arun_jobs after the last job keeps what the server does not record in time."""

    class NonRecordingServer(FakeServer):
        def record(self, limit: int | None = None) -> None: ...

    monkeypatch.setattr("executor_adapter.prefect.mirror.mirror.HURRIED_CLOSE_SECONDS", 0.5)
    monkeypatch.setattr("executor_adapter.prefect.mirror.mirror.MIN_HURRIED_CLOSE_SECONDS", 0.5)

    @flow
    async def run() -> None:
        with at_cloud(NonRecordingServer()) as cloud:
            mirror = PrefectMirror(stall_timeout=3600.0) if own else None
            running = asyncio.create_task(arun_jobs([Job(function=dict, pool="thread")], mirror=mirror))
            while not any(event["event"].endswith("Completed") for event in cloud.events.queue):
                await asyncio.sleep(0.01)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            if mirror is not None:
                mirror.close(0.0)
            assert OutboxFile(server_name()).count()

    asyncio.run(run())  # type: ignore[arg-type]


def test_run_jobs_outside_a_flow_is_refused(executor: JobExecutor) -> None:
    """Outside a flow run_jobs raises before any job starts."""
    with pytest.raises(RuntimeError, match="call it in a @flow"):
        run_jobs([Job(function=dict)])
    assert executor.jobs() == []


def test_a_job_that_calls_a_job_task_lends_its_slot(api: Api) -> None:
    """With one worker a thread job that calls a job task ends: the task gets the slot while the job waits for it."""

    @job_task(pool="thread")
    def inner(number: int) -> int:
        return number * 10

    def outer(number: int) -> int:
        return 1 + inner(number)

    @flow
    def run() -> list[Any]:
        with JobExecutor(1) as executor:
            jobs = [Job(function=outer, args=(number,), pool="thread", deadline=PATIENCE) for number in range(3)]
            return [result.value for result in run_jobs(jobs, executor=executor)]

    assert run() == [1, 11, 21]


def test_history_final_omits_passed_states(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """The final states have counts and times; the number of omitted states is logged once."""
    jobs = [Job(function=dict, pool="thread", job_id=f"job-{number}") for number in range(50)]
    with caplog.at_level(logging.INFO, "executor_adapter.prefect"), PrefectMirror(history="final") as mirror:
        flow_run_id, _ = run_in_flow(jobs, mirror=mirror)
    report = mirror.report()
    assert (report.complete, report.recorded) == (True, 50)
    runs = api.task_runs(flow_run_id)
    recorded = sum(len(api.states(run["id"])) for run in runs)
    assert recorded == 150 - report.omitted
    assert {(run["state_name"], run["run_count"]) for run in runs} == {("Completed", 1)}
    assert all(run["start_time"] <= run["end_time"] for run in runs)
    if report.omitted:
        assert sum("omitted" in message for message in caplog.messages) == 1


def test_progress_is_one_plain_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """`run_jobs(progress=True)` ends with one line of counts on stderr, and draws no bar where there is no terminal."""

    @flow
    def nightly() -> None:
        run_jobs([Job(function=fail, args=(n,), retry_attempts=0) for n in (0, 0, 1)], progress=True)

    nightly()
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run_jobs: ")]
    assert shown[-1].startswith("run_jobs: 3 of 3 done, 1 failed, ")
    assert not any("\x1b" in line or "━" in line for line in shown)


def test_progress_counts_jobs_whose_live_twin_runs_instead(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of the jobs that share a `dedupe_key` is done, and has failed, when the one of them that runs is."""
    go_on = threading.Event()

    def work() -> None:
        go_on.wait(PATIENCE)
        raise ValueError

    def jobs() -> Iterator[Job]:
        for _ in range(3):
            yield Job(function=work, pool="thread", dedupe_key="one", retry_attempts=0)
        go_on.set()

    run_in_flow(jobs(), progress=True)
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run_jobs: ")]
    assert shown[-1].startswith("run_jobs: 3 of 3 done, 3 failed, ")
