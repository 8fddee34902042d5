"""Tests of JobIntake: which submissions wait for a place, and how their wait ends."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from executor_adapter import Job
from executor_adapter.exceptions import ExecutorClosedError, InvalidJobError, QueueFullError
from executor_adapter.supervision.futures import JobFuture
from executor_adapter.supervision.intake import JobIntake
from executor_adapter.testing import InlineExecutor
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for


@pytest.fixture
def executor() -> Iterator[InlineExecutor]:
    with InlineExecutor() as executor:
        yield executor


class IntakeHarness:
    """An intake with a single place, which is taken, and threads that wait for it."""

    def __init__(self, executor: InlineExecutor) -> None:
        self.intake = JobIntake(1, lambda: True, contextlib.nullcontext)
        self._supervisor = supervisor_of(executor)
        self.first = Job(function=print, job_id="first")
        self.enter(self.first)

    def enter(self, job: Job, timeout: float | None = None, *, is_new: bool = True) -> JobFuture:
        future = JobFuture(job, self._supervisor.futures)
        return self.intake.enter(job, future, timeout, is_new=is_new, prepare=lambda: None, stored=None)

    def enter_in_threads(self, *jobs: Job) -> Callable[[], list[Any]]:
        """Submit each job in a thread of its own and wait until all block.

        Returns a function that joins the threads and returns, for each job, the job of its future or the error raised.
        """
        outcomes: dict[Job, Any] = {}

        def enter(job: Job) -> None:
            try:
                outcomes[job] = self.enter(job, 20).job
            except Exception as error:
                outcomes[job] = error

        waiting_before = self._waiting()
        threads = [threading.Thread(target=enter, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        wait_for(lambda: self._waiting() >= waiting_before + len(jobs))

        def join() -> list[Any]:
            for thread in threads:
                thread.join(PATIENCE)
            return [outcomes[job] for job in jobs]

        return join

    def _waiting(self) -> int:
        return len(self.intake._place_free._waiters)  # type: ignore[attr-defined]


def jobs_with_one_key(count: int) -> list[Job]:
    """Return that many jobs with the same dedupe key."""
    return [Job(function=print, dedupe_key="one") for _ in range(count)]


def test_one_of_several_jobs_with_one_key_gets_the_place(executor: InlineExecutor) -> None:
    """Of waiting jobs with one dedupe key, one gets the place and the others get its future at once."""
    harness = IntakeHarness(executor)
    jobs = jobs_with_one_key(3)
    join = harness.enter_in_threads(*jobs)
    harness.intake.leave_queue(harness.first)
    (taken,) = set(join())
    assert taken in jobs
    assert list(harness.intake.submitted) == [harness.first, taken]


def test_a_dedupe_key_is_taken_while_any_recovered_job_has_it(executor: InlineExecutor) -> None:
    """Recovered jobs with one key run beside each other; submits get the future of one that lives, whichever ended."""
    harness = IntakeHarness(executor)
    jobs = jobs_with_one_key(4)
    for job in jobs[:3]:
        harness.enter(job, is_new=False)
    left = set(jobs[:3])
    for job in jobs[:3]:
        twin = harness.intake.twin(jobs[3])
        assert twin is not None
        assert twin.job in left
        harness.intake.leave(job)
        left.remove(job)
    assert harness.intake.twin(jobs[3]) is None


def test_a_quarantined_job_that_waits_is_rejected(executor: InlineExecutor) -> None:
    """A waiting job that was quarantined meanwhile is rejected, and the next one gets the place."""
    harness = IntakeHarness(executor)
    job, other = Job(function=print), Job(function=print)
    join, join_other = harness.enter_in_threads(job), harness.enter_in_threads(other)
    harness.intake.quarantined[job.job_id] = job
    harness.intake.leave_queue(harness.first)
    (error,) = join()
    assert isinstance(error, InvalidJobError)
    assert "is quarantined" in str(error)
    assert join_other() == [other]


def test_a_live_id_takes_no_place(executor: InlineExecutor) -> None:
    """A job whose id is live already is rejected and takes no place."""
    harness = IntakeHarness(executor)
    harness.intake.leave_queue(harness.first)
    with pytest.raises(InvalidJobError, match="'first' is live already"):
        harness.enter(Job(function=print, job_id="first"))
    assert harness.intake._places == 1


def test_closing_rejects_waiting_submissions(executor: InlineExecutor) -> None:
    """Closing the intake rejects the submissions that wait for a place."""
    harness = IntakeHarness(executor)
    join = harness.enter_in_threads(Job(function=print), Job(function=print))
    harness.intake.close()
    assert [type(error) for error in join()] == [ExecutorClosedError] * 2
    with pytest.raises(ExecutorClosedError):
        harness.enter(Job(function=print), 0)


def test_closing_right_before_a_wait_ends_it(executor: InlineExecutor) -> None:
    """A submission does not wait if a signal handler closes the intake right before it sleeps."""
    harness = IntakeHarness(executor)
    sleep = harness.intake._place_free.wait

    def close_and_sleep(timeout: float | None = None) -> bool:
        harness.intake.close()
        return sleep(timeout)

    harness.intake._place_free.wait = close_and_sleep  # type: ignore[method-assign]
    with pytest.raises(ExecutorClosedError):
        harness.enter(Job(function=print), 20)


def test_a_submission_waits_until_its_timeout(executor: InlineExecutor) -> None:
    """A submission waits for a place until its timeout, then raises QueueFullError."""
    harness = IntakeHarness(executor)
    began = time.monotonic()
    with pytest.raises(QueueFullError, match="holds 1 of 1 jobs"):
        harness.enter(Job(function=print), 0.15)
    assert time.monotonic() - began >= 0.15
    with pytest.raises(QueueFullError):
        harness.enter(Job(function=print), 0)


def test_closing_inside_a_submission_does_not_block_the_supervisor(executor: InlineExecutor) -> None:
    """Closing the intake while its lock is held, as a signal handler may, does not block the supervisor."""
    harness = IntakeHarness(executor)
    left = threading.Event()

    def start() -> None:
        harness.intake.leave_queue(harness.first)
        left.set()

    with harness.intake._lock:
        threading.Thread(target=start).start()
        harness.intake.close()
        assert left.wait(PATIENCE)


def test_a_job_that_was_admitted_and_ended_meanwhile_is_refused(executor: InlineExecutor) -> None:
    """Of two threads that submit one job, the later one is refused, though the job has ended, and changes nothing."""
    harness = IntakeHarness(executor)
    future = harness.first.live.future
    harness.intake.leave(harness.first)
    with pytest.raises(InvalidJobError, match="was submitted already"):
        harness.enter(harness.first)
    assert harness.first.live.future is future
