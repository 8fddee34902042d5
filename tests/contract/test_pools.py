"""Tests the contract of the executor, which is the same for every pool."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobFuture, JobStatus, RetryPolicy, RetryRule
from executor_adapter.config import CollectionSettings, Settings
from executor_adapter.exceptions import (
    DataCollectionException,
    ExecutorClosedError,
    InvalidJobError,
    JobCancelledError,
    JobTimeoutError,
    QueueFullError,
)
from executor_adapter.job.transition import Transition
from executor_adapter.job.validation import ToolLimit
from tests.contract import functions
from tests.contract.conftest import MakeExecutor, MakeJob
from tests.waiting import PATIENCE, wait_for


def statuses(transitions: list[Transition], job: Job) -> list[str]:
    return [str(transition.status) for transition in transitions if transition.job is job]


# --- outcomes ---


def test_a_function_s_value_is_the_job_s(executor: JobExecutor, make_job: MakeJob) -> None:
    """The executor returns the function's value, and the job is completed with its times."""
    job = make_job(functions.add, 2, kwargs={"right": 3})

    assert executor.run(job) == 5
    assert job.status is JobStatus.COMPLETED
    assert job.duration is not None
    assert job.started_at is not None
    assert job.created_at <= job.started_at


def test_a_function_s_exception_is_raised_as_itself(executor: JobExecutor, make_job: MakeJob) -> None:
    """The executor raises the function's own exception, and the job has its code and message."""
    job = make_job(functions.fail_with_value_error, "no good", retry_attempts=0)

    with pytest.raises(ValueError, match="no good"):
        executor.run(job)
    assert (job.status, job.error_code, job.error_message) == ("failed", "EXECUTION_ERROR", "ValueError: no good")


def test_a_fresh_worker_runs_nothing_else(executor: JobExecutor, make_job: MakeJob, pool: str) -> None:
    """Each attempt of a job with fresh_worker has a process that runs no other job; a thread is refused."""
    if pool in ("thread", "coroutine"):
        with pytest.raises(InvalidJobError, match=f"fresh_worker=True needs a process, and pool='{pool}' has none"):
            executor.submit(make_job(functions.pid, fresh_worker=True))
        return
    for _ in range(3):  # Calls of the third round are known to be short, and others may be queued behind them.
        jobs = [make_job(functions.pid, fresh_worker=number % 2 == 1) for number in range(8)]
        pids = [future.result(PATIENCE) for future in [executor.submit(job) for job in jobs]]
        fresh = pids[1::2]
        assert len(set(fresh)) == 4
        assert not set(fresh) & set(pids[::2])
    failing = make_job(functions.fail_in_process, fresh_worker=True, retry_attempts=2)
    with pytest.raises(LookupError):
        executor.run(failing)
    assert len({attempt.error_message for attempt in failing.attempts}) == 3


def test_records_are_taken_from_the_result(executor: JobExecutor, make_job: MakeJob) -> None:
    """`records_collected` in a result sets the job's records_processed."""
    job = make_job(functions.collect, 7)
    executor.run(job)
    assert job.records_processed == 7


def test_a_timeout_error_of_the_function_s_own_is_a_timeout(executor: JobExecutor, make_job: MakeJob) -> None:
    """A TimeoutError that the function raises itself has the code TIMEOUT_ERROR."""
    job = make_job(functions.raise_timeout_error, retry_attempts=0)
    with pytest.raises(TimeoutError, match="own"):
        executor.run(job)
    assert job.error_code == "TIMEOUT_ERROR"


def test_a_function_knows_its_job(executor: JobExecutor, make_job: MakeJob) -> None:
    """`current_job()` has the job's id, attempt, tool and remaining time."""
    job = make_job(functions.describe_job, tool_name="radar", max_runtime=20.0)
    seen = executor.run(job)
    assert (seen["job_id"], seen["attempt"], seen["tool"]) == (job.job_id, 1, "radar")
    assert 0 < seen["remaining"] <= 20.0


def test_what_a_function_sets_in_context_variables_is_not_seen_by_the_next(
    make_executor: MakeExecutor, make_job: MakeJob
) -> None:
    """A context variable that one function sets is not seen by the next one of the same worker."""
    executor = make_executor(1)
    assert [executor.run(make_job(functions.count_call_in_a_context_variable)) for _ in range(3)] == [0, 0, 0]


# --- retries ---


def test_a_job_that_fails_twice_succeeds_at_the_third_attempt(
    make_executor: MakeExecutor, make_job: MakeJob, tmp_path: Path
) -> None:
    """A job that fails twice is retried, completes, and all its transitions are observed in order."""
    transitions: list[Transition] = []
    executor = make_executor(observers=(transitions.append,))
    job = make_job(functions.fail_until, str(tmp_path / "calls"), 3)

    assert executor.run(job) == 3
    assert statuses(transitions, job) == [
        "pending",
        "running",
        "retrying",
        "running",
        "retrying",
        "running",
        "completed",
    ]
    assert [(attempt.number, attempt.error_code) for attempt in job.attempts] == [
        (1, "NETWORK_ERROR"),
        (2, "NETWORK_ERROR"),
        (3, None),
    ]
    assert job.error_code is None


def test_retries_end_with_the_policy_s_budget(executor: JobExecutor, make_job: MakeJob, tmp_path: Path) -> None:
    """A job fails with its last error after retry_attempts retries."""
    job = make_job(functions.fail_until, str(tmp_path / "calls"), 99, retry_attempts=2)
    with pytest.raises(ConnectionError, match="call 3"):
        executor.run(job)
    assert len(job.attempts) == 3


def test_broken_data_is_not_retried(executor: JobExecutor, make_job: MakeJob) -> None:
    """A DATA_ERROR is not retried."""
    job = make_job(functions.fail_with_code, "DATA_ERROR", retry_attempts=5)
    with pytest.raises(DataCollectionException, match="broken: DATA_ERROR") as caught:
        executor.run(job)
    assert caught.value.error_code == "DATA_ERROR"
    assert len(job.attempts) == 1


def test_a_rule_decides_before_the_defaults(executor: JobExecutor, make_job: MakeJob) -> None:
    """A retry rule can have a DATA_ERROR retried."""
    policy = RetryPolicy(retry_attempts=2, retry_delay=0.01, rules=(RetryRule(codes=("DATA_ERROR",)),))
    job = make_job(functions.fail_with_code, "DATA_ERROR", retry=policy)
    with pytest.raises(DataCollectionException):
        executor.run(job)
    assert len(job.attempts) == 3


def test_a_waiting_retry_holds_no_slot(make_executor: MakeExecutor, make_job: MakeJob, tmp_path: Path) -> None:
    """A job that waits for its retry leaves its slot to others."""
    executor = make_executor(1)
    waiting = executor.submit(make_job(functions.fail_until, str(tmp_path / "calls"), 2, retry_delay=60.0))
    wait_for(lambda: waiting.job.status is JobStatus.RETRYING)
    assert executor.run(make_job(functions.add, 1)) == 2
    assert waiting.job.retry_at is not None


def test_the_next_attempt_sees_the_last_checkpoint(executor: JobExecutor, make_job: MakeJob) -> None:
    """The next attempt reads the last checkpoint, and the job has the last progress."""
    job = make_job(functions.count_up_in_checkpoints, 3)
    assert executor.run(job) == 3
    assert job.progress is not None
    assert (job.progress.done, job.progress.total, job.progress.message) == (3, 3, "counting")


# --- limits ---


def test_a_job_past_max_runtime_ends_and_others_continue(executor: JobExecutor, make_job: MakeJob) -> None:
    """A job past max_runtime ends on time with TIMEOUT_ERROR, and other jobs complete."""
    stuck = executor.submit(make_job(time.sleep, 3600, max_runtime=0.3, retry_attempts=0))
    neighbours = [executor.submit(make_job(functions.add, n)) for n in range(20)]

    with pytest.raises(JobTimeoutError, match=r"max_runtime=0\.3"):
        stuck.result(timeout=PATIENCE)
    assert stuck.job.attempts[0].run_seconds >= 0.3
    assert (stuck.job.status, stuck.job.error_code) == ("failed", "TIMEOUT_ERROR")
    assert stuck.job.attempts[0].kill_seconds is not None
    assert [future.result(timeout=PATIENCE) for future in neighbours] == list(range(1, 21))


def test_a_timed_out_attempt_is_retried(executor: JobExecutor, make_job: MakeJob) -> None:
    """An attempt that timed out is retried."""
    job = make_job(time.sleep, 30, max_runtime=0.1, retry_attempts=1)
    with pytest.raises(JobTimeoutError):
        executor.run(job)
    assert [attempt.error_code for attempt in job.attempts] == ["TIMEOUT_ERROR", "TIMEOUT_ERROR"]


def test_queue_timeout_counts_until_the_start(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """A job that does not start within queue_timeout fails without an attempt."""
    executor = make_executor(1)
    running = executor.submit(make_job(time.sleep, 30))
    wait_for(running.running)
    queued = executor.submit(make_job(functions.add, 1, queue_timeout=0.1))
    with pytest.raises(JobTimeoutError, match=r"queue_timeout=0\.1"):
        queued.result(timeout=PATIENCE)
    assert (queued.job.status, queued.job.error_code, queued.job.attempt) == ("failed", "QUEUE_TIMEOUT", 0)
    assert running.running()


def test_deadline_counts_over_all_attempts_and_waits(executor: JobExecutor, make_job: MakeJob, tmp_path: Path) -> None:
    """The deadline ends a job that waits for a retry."""
    job = make_job(functions.fail_until, str(tmp_path / "calls"), 99, retry_delay=60.0, deadline=0.4)
    with pytest.raises(JobTimeoutError, match=r"deadline=0\.4"):
        executor.submit(job).result(timeout=PATIENCE)
    assert job.error_code == "DEADLINE_EXCEEDED"


def test_deadline_ends_a_running_attempt(executor: JobExecutor, make_job: MakeJob) -> None:
    """The deadline ends a running attempt."""
    executor.run(make_job(functions.add, 1))  # a worker is up: what follows starts at once
    job = make_job(time.sleep, 30, deadline=1.0)
    with pytest.raises(JobTimeoutError, match=r"deadline=1\.0"):
        executor.submit(job).result(timeout=PATIENCE)
    assert (job.error_code, len(job.attempts)) == ("DEADLINE_EXCEEDED", 1)


def test_a_job_that_stops_making_progress_ends(executor: JobExecutor, make_job: MakeJob, pool: str) -> None:
    """A job that reports no progress for stall_timeout seconds ends."""
    function = functions.report_then_sleep_on_loop if pool == "coroutine" else functions.report_then_sleep
    job = Job(function=function, args=(5, 0.1, 30), pool=pool, stall_timeout=0.4, retry_attempts=0)
    with pytest.raises(JobTimeoutError, match=r"stall_timeout=0\.4"):
        executor.submit(job).result(timeout=PATIENCE)
    assert job.progress is not None
    assert job.progress.done == 5
    assert job.attempts[0].run_seconds > 0.8


def test_soft_timeout_lets_a_function_clean_up(make_executor: MakeExecutor, tmp_path: Path, pool: str) -> None:
    """A function can catch SoftTimeoutError, clean up and return; a coroutine job with soft_timeout is refused."""
    executor = make_executor(1)
    if pool == "coroutine":
        with pytest.raises(InvalidJobError, match="pool='coroutine': use 'thread' or 'process'"):
            executor.submit(Job(function=functions.sleep_on_loop, args=(1,), soft_timeout=0.1))
        return
    path = tmp_path / "cleaned"
    executor.submit(Job(function=functions.add, args=(1, 2), pool=pool)).result(timeout=PATIENCE)  # It is imported.
    job = Job(
        function=functions.clean_up_at_soft_timeout, args=(str(path),), pool=pool, soft_timeout=1, max_runtime=20,
        retry_attempts=0,
    )  # fmt: skip
    assert executor.submit(job).result(timeout=PATIENCE) == "cut short"
    assert path.exists()


def test_a_function_that_lets_soft_timeout_pass_is_timed_out(executor: JobExecutor, pool: str) -> None:
    """A function that does not catch SoftTimeoutError fails with TIMEOUT_ERROR."""
    if pool == "coroutine":
        return
    job = Job(function=functions.spin, args=(30.0,), pool=pool, soft_timeout=0.2, max_runtime=20, retry_attempts=0)
    with pytest.raises(JobTimeoutError, match=r"soft_timeout=0\.2"):
        executor.submit(job).result(timeout=PATIENCE)
    assert job.error_code == "TIMEOUT_ERROR"


@pytest.mark.parametrize("pool", ["thread", "process", "process by spawn", "ssh"], indirect=True)
def test_a_soft_timeout_below_a_microsecond_ends_the_function(make_executor: MakeExecutor, pool: str) -> None:
    """A soft_timeout that passes before the function has begun is raised in it all the same."""
    executor = make_executor(1)
    executor.submit(Job(function=functions.add, args=(1, 2), pool=pool)).result(timeout=PATIENCE)
    job = Job(function=functions.spin, args=(300.0,), pool=pool, soft_timeout=1e-9, retry_attempts=0)
    with pytest.raises(JobTimeoutError, match="soft_timeout=1e-09"):
        executor.submit(job).result(timeout=PATIENCE)


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_no_job_waits_behind_one_that_was_taken_for_short(
    make_executor: MakeExecutor, pool: str, tmp_path: Path
) -> None:
    """Jobs queued behind one that was taken for short, and is not, run in another worker."""
    there, never = str(tmp_path), str(tmp_path / "never")
    executor = make_executor(2)
    list(executor.map(functions.wait_for_file, [there] * 200, pool=pool))
    jobs = [Job(function=functions.wait_for_file, args=(path,), pool=pool) for path in (never, *[there] * 40)]
    held, *others = [executor.submit(job) for job in jobs]
    for future in others:
        future.result(timeout=PATIENCE)
    assert held.running()
    assert {len(future.job.attempts) for future in others} == {1}
    held.cancel()


# --- retries that run alone ---

ALONE = RetryPolicy(retry_delay=0.01, rules=(RetryRule(codes=("NETWORK_ERROR",), alone=True),))


def test_a_retry_alone_runs_beside_no_other(make_executor: MakeExecutor, make_job: MakeJob, tmp_path: Path) -> None:
    """A retry that must run alone runs beside no other job."""
    executor = make_executor(4)
    future = executor.submit(make_job(functions.fail_then_stay, str(tmp_path / "calls"), 0.3, retry=ALONE))
    wait_for(lambda: future.job.attempt == 2)
    other = executor.submit(make_job(functions.add, 1))
    assert future.result(timeout=PATIENCE) == 2
    assert other.result(timeout=PATIENCE) == 2
    assert other.job.started_at is not None
    assert future.job.completed_at is not None
    assert other.job.started_at >= future.job.completed_at - timedelta(milliseconds=5)


def test_a_driven_retry_alone_runs_beside_no_other(
    make_executor: MakeExecutor, make_job: MakeJob, tmp_path: Path
) -> None:
    """A driven retry that must run alone does so from the grant of its slot until its attempt has ended."""
    executor = make_executor(4)
    driver = executor.drive(make_job(functions.fail_then_stay, str(tmp_path / "calls"), 0.3, retry=ALONE))
    driver.acquire().result(timeout=PATIENCE)
    error = driver.attempt().exception(timeout=PATIENCE)
    assert error is not None
    driver.retry(driver.decide(error)).result(timeout=PATIENCE)
    driver.acquire().result(timeout=PATIENCE)
    other = executor.submit(make_job(functions.add, 1))
    began_at = datetime.now(UTC)
    assert driver.attempt().result(timeout=PATIENCE) == 2
    driver.complete(2)
    assert other.result(timeout=PATIENCE) == 2
    assert other.job.started_at is not None
    assert (other.job.started_at - began_at).total_seconds() >= 0.29


# --- limits of a tool ---


def test_a_tool_s_jobs_run_at_most_so_many_at_once(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """A tool's max_concurrent holds its jobs back, and not those of other tools."""
    executor = make_executor(4, tool_limits={"api": ToolLimit(max_concurrent=1)})
    held = executor.submit(make_job(time.sleep, 30, tool_name="api"))
    wait_for(held.running)
    next_one = executor.submit(make_job(functions.add, 1, tool_name="api"))
    assert executor.run(make_job(functions.add, 2, tool_name="other")) == 3
    assert next_one.job.status is JobStatus.PENDING
    held.cancel()
    assert next_one.result(timeout=PATIENCE) == 2


def test_retry_after_pauses_the_whole_tool(make_executor: MakeExecutor, make_job: MakeJob, tmp_path: Path) -> None:
    """A RATE_LIMITED error with retry_after holds back all jobs of its tool for that time."""
    executor = make_executor(4, tool_limits={"api": ToolLimit(max_concurrent=4)})
    path = str(tmp_path / "calls")
    first = executor.submit(make_job(functions.be_rate_limited_once, path, 0.5, tool_name="api"))
    due = wait_for(lambda: first.job.retry_at)
    second = executor.submit(make_job(functions.add, 1, tool_name="api"))
    assert second.result(timeout=PATIENCE) == 2
    assert first.result(timeout=PATIENCE) == 2
    assert second.job.started_at is not None
    # Far from its submission, and as near as two clocks that are read one after the other.
    assert second.job.started_at > due - timedelta(milliseconds=100)


def test_the_settings_buffer_leaves_a_share_of_a_tool_s_rate_unused(make_job: MakeJob) -> None:
    """At 10 starts a second with half of them left unused, five jobs take at least 0.8 seconds."""
    config = Settings(collection=CollectionSettings(rate_limit_buffer=0.5))
    with JobExecutor(4, config=config, tool_limits={"api": ToolLimit(rate=10.0)}) as executor:
        began_at = time.monotonic()
        for future in [executor.submit(make_job(functions.add, n, tool_name="api")) for n in range(5)]:
            future.result(timeout=PATIENCE)
        assert time.monotonic() - began_at >= 0.79


# --- cancel ---


def test_a_running_job_is_cancelled(executor: JobExecutor, make_job: MakeJob) -> None:
    """A running job is cancelled once; a second cancel returns False."""
    future = executor.submit(make_job(time.sleep, 30))
    wait_for(future.running)
    assert executor.cancel(future.job.job_id)
    with pytest.raises(JobCancelledError):
        future.result(timeout=PATIENCE)
    assert future.cancelled()
    assert future.job.status is JobStatus.CANCELLED
    assert not future.cancel()


def test_a_queued_job_is_cancelled_without_an_attempt(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """A queued job is cancelled without an attempt."""
    executor = make_executor(1)
    executor.submit(make_job(time.sleep, 30))
    queued = executor.submit(make_job(functions.add, 1))
    assert queued.cancel()
    with pytest.raises(JobCancelledError):
        queued.result(timeout=PATIENCE)
    assert queued.job.attempt == 0


def test_a_waiting_retry_is_cancelled(executor: JobExecutor, make_job: MakeJob, tmp_path: Path) -> None:
    """A job that waits for its retry is cancelled."""
    future = executor.submit(make_job(functions.fail_until, str(tmp_path / "calls"), 9, retry_delay=60.0))
    wait_for(lambda: future.job.status is JobStatus.RETRYING)
    future.cancel()
    with pytest.raises(JobCancelledError):
        future.result(timeout=PATIENCE)


def test_a_burst_of_cancelled_submissions_ends_in_order(executor: JobExecutor, make_job: MakeJob) -> None:
    """Jobs cancelled right after their submission are either completed or cancelled."""
    futures = [executor.submit(make_job(functions.add, n)) for n in range(200)]
    for future in futures[::2]:
        future.cancel()
    for future in futures:
        future.exception(timeout=PATIENCE) if not future.cancelled() else None
        assert future.job.status in (JobStatus.COMPLETED, JobStatus.CANCELLED)


# --- queue ---


def test_higher_priority_starts_first(make_executor: MakeExecutor, make_job: MakeJob, tmp_path: Path) -> None:
    """Queued jobs start in the order of their priority."""
    executor = make_executor(1)
    path = str(tmp_path / "order")
    blocker = executor.submit(make_job(time.sleep, 0.3))
    wait_for(blocker.running)
    jobs = [make_job(functions.append_line, path, str(p), priority=p) for p in (0, 5, -3, 5, 9)]
    for future in [executor.submit(job) for job in jobs]:
        future.result(timeout=PATIENCE)
    assert Path(path).read_text().split() == ["9", "5", "5", "0", "-3"]


def test_a_full_queue_refuses_or_waits_as_asked(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """A full queue refuses a job when its timeout is over, and accepts it when there is room in time."""
    executor = make_executor(1, max_pending=2)
    running = executor.submit(make_job(time.sleep, 30))
    wait_for(running.running)
    queued = [executor.submit(make_job(functions.add, n)) for n in range(2)]

    with pytest.raises(QueueFullError, match="2 of 2 jobs"):
        executor.submit(make_job(functions.add, 3), timeout=0.05)
    threading.Timer(0.1, running.cancel).start()
    assert executor.submit(make_job(functions.add, 4), timeout=10).result(timeout=PATIENCE) == 5
    assert [future.result() for future in queued] == [1, 2]


def test_a_live_job_with_the_same_dedupe_key_is_returned(executor: JobExecutor, make_job: MakeJob) -> None:
    """A job with the dedupe_key of a live one is not run: the live one's future is returned."""
    first = executor.submit(make_job(time.sleep, 0.2, dedupe_key="once"))
    assert executor.submit(make_job(time.sleep, 0.2, dedupe_key="once")) is first
    first.result(timeout=PATIENCE)
    later = executor.submit(make_job(functions.add, 1, dedupe_key="once"))
    assert later is not first
    assert later.result(timeout=PATIENCE) == 2


def test_a_job_is_submitted_once(executor: JobExecutor, make_job: MakeJob) -> None:
    """A job cannot be submitted again, but a copy of it can."""
    job = make_job(functions.add, 1)
    executor.run(job)
    with pytest.raises(InvalidJobError, match="submitted already"):
        executor.submit(job)
    assert executor.run(job.model_copy()) == 2


def test_live_ids_are_unique(executor: JobExecutor, make_job: MakeJob) -> None:
    """A job with the id of a live one is refused."""
    executor.submit(make_job(time.sleep, 30, job_id="same"))
    with pytest.raises(InvalidJobError, match="'same' is live already"):
        executor.submit(make_job(functions.add, 1, job_id="same"))


def test_map_is_lazy_in_order_and_bounded(executor: JobExecutor, pool: str) -> None:
    """`map` takes from an endless iterable only as much as its window allows, and keeps the order."""
    taken = itertools.count()
    endless = (next(taken) for _ in itertools.count())
    results = executor.map(functions.for_pool(functions.add, pool), endless, pool=pool, window=4)
    assert [next(results).value for _ in range(50)] == list(range(1, 51))
    results.close()  # type: ignore[attr-defined]
    assert next(taken) <= 55


def test_map_gives_failures_as_results(executor: JobExecutor, pool: str) -> None:
    """`map` returns a failed job as a result, which raises when it is unwrapped."""
    function = functions.for_pool(functions.fail_with_code, pool)
    (result,) = executor.map(function, ["DATA_ERROR"], pool=pool)
    assert (result.status, result.error_code, result.attempts) == ("failed", "DATA_ERROR", 1)
    with pytest.raises(DataCollectionException):
        result.unwrap()


def test_map_as_completed_gives_the_quick_first(make_executor: MakeExecutor, tmp_path: Path, pool: str) -> None:
    """`map(ordered=False)` returns results as they are completed."""
    gate, open_gate = tmp_path / "gate", tmp_path / "open"
    open_gate.touch()
    wait = functions.for_pool(functions.wait_for_file, pool)
    paths = [str(gate), str(open_gate)]
    results = make_executor(2).map(wait, paths, pool=pool, ordered=False, max_runtime=PATIENCE)
    assert next(results).status == "completed"
    gate.touch()
    assert next(results).status == "completed"


# --- observers, futures, stats ---


def test_a_failing_observer_harms_no_job(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """An observer that raises harms neither jobs nor other observers."""
    transitions: list[Transition] = []

    def fail(transition: Transition) -> None:
        raise RuntimeError("observer")

    executor = make_executor(observers=(fail, transitions.append))
    job = make_job(functions.add, 1)
    assert executor.run(job) == 2
    wait_for(lambda: statuses(transitions, job) == ["pending", "running", "completed"])


def test_a_callback_that_blocks_does_not_hold_up_other_jobs(executor: JobExecutor, make_job: MakeJob) -> None:
    """A blocked done-callback does not hold up other jobs."""
    blocked, release = threading.Event(), threading.Event()

    def block(future: JobFuture) -> None:
        blocked.set()
        release.wait(PATIENCE)

    first = executor.submit(make_job(time.sleep, 0.3))
    first.add_done_callback(block)
    assert blocked.wait(PATIENCE)
    assert executor.submit(make_job(functions.add, 2)).result(timeout=PATIENCE) == 3
    release.set()


def test_stats_count_every_job_once(executor: JobExecutor, make_job: MakeJob) -> None:
    """The statistics count each job once."""
    futures = [executor.submit(make_job(functions.add, n)) for n in range(10)]
    futures.append(executor.submit(make_job(functions.fail_with_code, "DATA_ERROR")))
    for future in futures:
        future.exception(timeout=PATIENCE)
    stats = executor.stats()
    assert (stats.jobs_completed, stats.jobs_failed) == (10, 1)
    assert (stats.jobs_pending, stats.jobs_running, stats.workers_busy) == (0, 0, 0)


# --- shutdown ---


def test_shutdown_drains_by_default(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """`shutdown` waits for all jobs, and later submissions are refused."""
    executor = make_executor(1)
    futures = [executor.submit(make_job(time.sleep, 0.02)) for _ in range(10)]
    executor.shutdown()
    assert {future.job.status for future in futures} == {JobStatus.COMPLETED}
    with pytest.raises(ExecutorClosedError):
        executor.submit(make_job(functions.add, 1))
    executor.shutdown()


def test_shutdown_can_cancel_queued_jobs(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """`shutdown(cancel_futures=True)` completes running jobs and cancels queued ones."""
    executor = make_executor(1)
    running = executor.submit(make_job(time.sleep, 0.3))
    wait_for(running.running)
    queued = executor.submit(make_job(time.sleep, 30))
    executor.shutdown(cancel_futures=True)
    assert (running.job.status, queued.job.status) == ("completed", "cancelled")


def test_shutdown_can_end_all_jobs_after_a_time(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """`shutdown(timeout=...)` cancels the jobs that are not done in time."""
    executor = make_executor(1)
    future = executor.submit(make_job(time.sleep, 3600, max_runtime=None))
    wait_for(future.running)
    began_at = time.monotonic()
    executor.shutdown(timeout=0.2)
    assert time.monotonic() - began_at > 0.15
    assert future.job.status is JobStatus.CANCELLED


def test_leaving_the_with_block_in_an_exception_ends_all_jobs(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """An exception that leaves the `with` block cancels all jobs, and waits for none."""
    executor = make_executor(1)
    futures = [executor.submit(make_job(time.sleep, 3600, max_runtime=None)) for _ in range(3)]
    wait_for(futures[0].running)
    with pytest.raises(KeyError), executor:
        raise KeyError("out")
    assert {future.job.status for future in futures} == {JobStatus.CANCELLED}


def submit_until_refused(executor: JobExecutor, make_job: MakeJob) -> list[JobFuture]:
    futures = []
    while True:
        try:
            futures.append(executor.submit(make_job(functions.add, 1)))
        except ExecutorClosedError:
            return futures


@pytest.mark.parametrize("delay", [0.001, 0.003, 0.01, 0.03])
def test_a_signal_handler_may_shut_down_while_jobs_are_submitted(make_job: MakeJob, delay: float) -> None:
    """After a shutdown from a signal handler, accepted jobs are done and later ones are refused."""
    executor = JobExecutor(2, config=Settings())
    before = signal.signal(signal.SIGALRM, lambda *_: executor.shutdown(wait=False, cancel_futures=True))
    try:
        signal.setitimer(signal.ITIMER_REAL, delay)
        futures = submit_until_refused(executor, make_job)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    executor.shutdown()
    assert all(future.done() for future in futures)
    assert not executor.jobs()


# --- subclassing ---


class HookedExecutor(JobExecutor):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[str] = []

    async def pre_execution_hook(self, job: Job) -> None:
        self.calls.append(f"pre {job.attempt}")

    async def post_execution_hook(self, job: Job, result: Any) -> None:
        self.calls.append(f"post {result}")

    async def error_hook(self, job: Job, error: Exception) -> None:
        self.calls.append(f"error {type(error).__name__}")


def test_every_attempt_passes_through_the_hooks(make_job: MakeJob, tmp_path: Path) -> None:
    """The hooks are called for each attempt."""
    with HookedExecutor(2, config=Settings()) as executor:
        assert executor.run(make_job(functions.fail_until, str(tmp_path / "calls"), 2)) == 2
        assert executor.calls == ["pre 1", "error ConnectionError", "pre 2", "post 2"]


def test_max_runtime_holds_under_hooks(make_job: MakeJob) -> None:
    """max_runtime ends a job whose executor has hooks."""
    with HookedExecutor(2, config=Settings()) as executor:
        future = executor.submit(make_job(time.sleep, 30, max_runtime=0.2, retry_attempts=0))
        with pytest.raises(JobTimeoutError, match=r"max_runtime=0\.2"):
            future.result(timeout=PATIENCE)
        assert executor.calls == ["pre 1", "error JobTimeoutError"]
        assert (future.job.status, future.job.error_code) == ("failed", "TIMEOUT_ERROR")


def test_a_hooked_job_is_cancelled(make_job: MakeJob) -> None:
    """A running job whose executor has hooks is cancelled."""
    with HookedExecutor(2, config=Settings()) as executor:
        future = executor.submit(make_job(time.sleep, 30))
        wait_for(future.running)
        future.cancel()
        with pytest.raises(JobCancelledError):
            future.result(timeout=PATIENCE)
        assert future.job.status is JobStatus.CANCELLED


# --- drivers ---


def test_a_driver_decides_what_follows(executor: JobExecutor, make_job: MakeJob, tmp_path: Path) -> None:
    """A driver runs attempts, decides on a retry, and completes the job."""
    driver = executor.drive(make_job(functions.fail_until, str(tmp_path / "calls"), 2, retry_attempts=3))
    driver.acquire().result(timeout=PATIENCE)
    assert (driver.job.status, driver.job.attempt) == ("running", 1)
    error = driver.attempt().exception(timeout=PATIENCE)
    assert isinstance(error, ConnectionError)
    decision = driver.decide(error)
    assert decision.retry
    driver.retry(decision).result(timeout=PATIENCE)
    driver.acquire().result(timeout=PATIENCE)
    assert driver.attempt().result(timeout=PATIENCE) == 2
    driver.complete(2)
    wait_for(lambda: driver.job.status is JobStatus.COMPLETED)
    assert len(driver.job.attempts) == 2


def test_a_driver_s_slot_is_free_again_without_an_attempt(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """A driver that completes its job without an attempt frees its slot."""
    executor = make_executor(1)
    driver = executor.drive(make_job(functions.add, 1))
    driver.acquire().result(timeout=PATIENCE)
    other = executor.submit(make_job(functions.add, 2))
    driver.complete("cached")
    assert other.result(timeout=PATIENCE) == 3


def test_a_driver_has_the_future_of_a_live_twin(executor: JobExecutor, make_job: MakeJob) -> None:
    """A job whose dedupe_key is live is not driven: its driver has the future of the live job."""
    future = executor.submit(make_job(time.sleep, 30, dedupe_key="once"))
    assert executor.drive(make_job(functions.add, 1, dedupe_key="once")).twin is future
    other = executor.drive(make_job(functions.add, 1, dedupe_key="another"))
    assert other.twin is None
    other.complete()


def test_a_driven_job_is_cancelled_while_it_waits_for_a_slot(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """A driven job is cancelled while it waits for a slot."""
    executor = make_executor(1)
    executor.submit(make_job(time.sleep, 30))
    driver = executor.drive(make_job(functions.add, 1))
    waiting = driver.acquire()
    assert driver.cancel()
    error = waiting.exception(timeout=PATIENCE)
    assert isinstance(error, JobCancelledError)
    driver.fail(error)
    wait_for(lambda: driver.job.status is JobStatus.CANCELLED)
