"""Tests attempts that have ended by the time that the supervisor learns of their start."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.config import Settings
from executor_adapter.job import Transition
from tests.insides import count_as_short, supervisor_of
from tests.waiting import PATIENCE


def work(call: Callable[[], object]) -> None:
    call()


def fail() -> None:
    raise ValueError("as asked")


@pytest.mark.parametrize("is_observed", [False, True])
def test_an_attempt_that_began_and_ended_unseen_is_one_attempt(*, is_observed: bool) -> None:
    """It counts, has its times, and observers are told of its start and its end, also where it fails."""
    seen: dict[Job, list[JobStatus]] = {}

    def observe(transition: Transition) -> None:
        seen.setdefault(transition.job, []).append(transition.status)

    with JobExecutor(1, config=Settings(), observers=[observe] if is_observed else []) as executor:
        supervisor = supervisor_of(executor)
        is_blocked, go_on, is_done = threading.Event(), threading.Event(), threading.Event()

        def block() -> None:
            is_blocked.set()
            assert go_on.wait(PATIENCE)

        def block_supervisor() -> None:
            supervisor.call_soon(block)
            assert is_blocked.wait(PATIENCE)

        def job(call: Callable[[], object]) -> Job:
            return Job(function=work, args=(call,), pool="thread", retry_attempts=0)

        executor.run(job(int))
        supervisor.call_soon(count_as_short, executor, work)  # So that others are queued behind it.
        hold = threading.Event()
        supervisor.call_soon(hold.wait)
        jobs = [job(block_supervisor), job(int), job(fail), job(is_done.set)]
        futures = [executor.submit(each) for each in jobs]
        hold.set()
        assert is_done.wait(PATIENCE)
        assert [each.status for each in jobs[1:]] == [JobStatus.PENDING] * 3
        go_on.set()
        assert [future.exception(PATIENCE) is None for future in futures] == [True, True, False, True]
    for each in jobs[1:]:
        (attempt,) = each.attempts
        assert attempt.number == each.attempt == 1
        assert each.started_at is not None
        assert each.completed_at is not None
        assert each.started_at <= each.completed_at
        last = JobStatus.FAILED if each is jobs[2] else JobStatus.COMPLETED
        assert each.status is last
        assert seen.get(each) == ([JobStatus.PENDING, JobStatus.RUNNING, last] if is_observed else None)
