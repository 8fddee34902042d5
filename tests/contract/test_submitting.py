"""Tests of submissions that race with a cancel, a shutdown or a signal handler: every job ends."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobFuture, JobStatus
from executor_adapter.config import Settings
from executor_adapter.exceptions import ExecutorClosedError, JobCancelledError
from executor_adapter.job.transition import Transition
from executor_adapter.testing import InlineExecutor
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for


def work() -> int:
    return 1


@pytest.fixture
def transitions() -> list[Transition]:
    return []


@pytest.fixture
def executor(transitions: list[Transition]) -> Iterator[JobExecutor]:
    executor = JobExecutor(1, config=Settings(), observers=[transitions.append])
    yield executor
    executor.shutdown(timeout=0)


@pytest.mark.parametrize("cancel", [False, True])
def test_a_shutdown_finds_the_first_job_though_no_thread_runs_it_yet(executor: JobExecutor, cancel: bool) -> None:
    """A shutdown cancels the first job even if its submission was interrupted before the thread started."""
    supervisor_of(executor).thread.wake = lambda: None  # type: ignore[method-assign]
    future = executor.submit(Job(function=work))
    executor.shutdown(cancel_futures=cancel)
    assert future.done()
    assert future.job.status is (JobStatus.CANCELLED if cancel else JobStatus.COMPLETED)
    assert not executor.jobs()


@pytest.mark.parametrize("seconds_late", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("field", ["deadline", "queue_timeout"])
def test_a_job_that_a_store_kept_past_its_limit_never_starts(field: str, seconds_late: float) -> None:
    """A job that is past its deadline or queue_timeout when it is accepted, since a store kept it, never starts."""
    ran: list[int] = []
    with InlineExecutor() as executor:
        job = Job(function=ran.append, args=(1,), **{field: 60.0})
        future = supervisor_of(executor).admit(job, waited=60.0 + seconds_late)
        assert future.done()
    assert_ended_in_time(job, ran, seconds_late < 0)


@pytest.mark.parametrize("seconds_late", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("field", ["deadline", "queue_timeout"])
def test_a_job_that_waits_past_its_limit_to_be_accepted_never_starts(field: str, seconds_late: float) -> None:
    """A job whose deadline or queue_timeout passes while the supervisor does something else never starts."""
    ran: list[int] = []
    job = Job(function=ran.append, args=(1,), **{field: 60.0})

    def submit_and_be_slow(transition: Transition) -> None:
        if transition.job is not job and transition.status is JobStatus.COMPLETED:
            executor.submit(job)
            executor.clock.advance(60.0 + seconds_late)

    with InlineExecutor(observers=[submit_and_be_slow]) as executor:
        executor.run(Job(function=work))
    assert_ended_in_time(job, ran, seconds_late < 0)


def assert_ended_in_time(job: Job, ran: list[int], is_in_time: bool) -> None:
    """Check that the job ran if it was in time, and otherwise ended at its limit before any attempt."""
    if is_in_time:
        assert (job.status, ran) == (JobStatus.COMPLETED, [1])
    else:
        assert (job.status, job.attempt, job.attempts, ran) == (JobStatus.FAILED, 0, (), [])


class SlowQueue(deque[Job]):
    """A queue that blocks each submission until the test releases it."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go_on = threading.Event(), threading.Event()

    def append(self, job: Job) -> None:
        self.entered.set()
        assert self.go_on.wait(PATIENCE)
        super().append(job)


@pytest.mark.parametrize("event", ["cancel", "release", "signal at a prompt"])
def test_a_job_is_submitted_before_it_is_cancelled(
    executor: JobExecutor, transitions: list[Transition], event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel that races with a submission is handled after it."""
    # A job that takes the only worker, so that the next one cannot start.
    executor.submit(Job(function=time.sleep, args=(30,), pool="process"))
    wait_for(executor.running)
    supervisor, job = supervisor_of(executor), Job(function=work)
    slow = supervisor.intake.submitted = SlowQueue()
    if event == "signal at a prompt":
        monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    ends = {
        "cancel": lambda: executor.cancel(job.job_id),
        "release": lambda: supervisor.release_job(job),
        "signal at a prompt": lambda: supervisor.on_signal(signal.SIGINT),
    }
    futures: list[JobFuture] = []
    submission = threading.Thread(target=lambda: futures.append(executor.submit(job)))
    ending = threading.Thread(target=ends[event])
    submission.start()
    assert slow.entered.wait(PATIENCE)
    ending.start()
    ending.join(0.1)  # Give a wrong order time to show.
    slow.go_on.set()
    submission.join(PATIENCE)
    ending.join(PATIENCE)
    with pytest.raises(JobCancelledError):
        futures[0].result(timeout=PATIENCE)
    of_job = [transition for transition in transitions if transition.job is job]
    assert [transition.previous for transition in of_job] == [None, JobStatus.PENDING]
    assert [transition.status for transition in of_job] == [JobStatus.PENDING, JobStatus.CANCELLED]
    assert executor.stats().jobs_pending == 0


def test_no_job_starts_while_a_signal_at_a_prompt_ends_all(
    executor: JobExecutor, transitions: list[Transition], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that waits for the worker of another one is cancelled with it, however slow the thread is that is told."""
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    supervisor = supervisor_of(executor)
    running = executor.submit(Job(function=time.sleep, args=(30,), pool="process"))
    wait_for(executor.running)
    waiting = executor.submit(Job(function=work))
    call_soon = supervisor.call_soon

    def call_slowly(*call: Any) -> None:
        call_soon(*call)
        wait_for(running.done)

    monkeypatch.setattr(supervisor, "call_soon", call_slowly)
    supervisor.on_signal(signal.SIGINT)
    with pytest.raises(JobCancelledError):
        waiting.result(timeout=PATIENCE)
    of_job = [transition.status for transition in transitions if transition.job is waiting.job]
    assert of_job == [JobStatus.PENDING, JobStatus.CANCELLED]


def submit_until_refused(executor: JobExecutor) -> list[JobFuture]:
    futures = []
    while True:
        try:
            futures.append(executor.submit(Job(function=work)))
        except ExecutorClosedError:
            return futures


@pytest.mark.parametrize(
    ("max_pending", "started"),
    [
        (None, False),
        (5, True),
        pytest.param(None, True, marks=pytest.mark.nightly),
        pytest.param(5, False, marks=pytest.mark.nightly),
    ],
)
def test_a_signal_handler_may_wait_for_the_end_of_an_executor_while_jobs_are_submitted(
    max_pending: int | None, started: bool
) -> None:
    """A signal handler may wait for a shutdown at any point of the submission that it interrupts."""
    for round_ in range(100):
        executor = JobExecutor(2, config=Settings(), max_pending=max_pending)
        if started:
            executor.run(Job(function=work))
        previous_handler = signal.signal(signal.SIGALRM, lambda *_: executor.shutdown(cancel_futures=True))  # noqa: B023
        try:
            signal.setitimer(signal.ITIMER_REAL, 2e-5 * (round_ + 1))
            futures = submit_until_refused(executor)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous_handler)
        assert all(future.done() for future in futures)
        assert not executor.jobs()
