"""The door of an executor: who waits there, and what becomes of him."""

from __future__ import annotations

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


@pytest.fixture
def executor() -> Iterator[InlineExecutor]:
    with InlineExecutor() as executor:
        yield executor


class Door:
    """An intake of one place, which is taken; and threads that want in."""

    def __init__(self, executor: InlineExecutor) -> None:
        self.intake = JobIntake(1)
        self._supervisor = supervisor_of(executor)
        self.first = Job(function=print, job_id="first")
        self.enter(self.first)

    def enter(self, job: Job, timeout: float | None = None) -> JobFuture:
        return self.intake.enter(job, JobFuture(job, self._supervisor.futures), timeout)

    def come(self, *jobs: Job) -> Callable[[], list[Any]]:
        """Have each wait at the door; then what joins them, and gives whose future each got, or what he was told."""
        got: dict[Job, Any] = {}

        def enter(job: Job) -> None:
            try:
                got[job] = self.enter(job, 20).job
            except Exception as error:
                got[job] = error

        there = self._waiting()
        threads = [threading.Thread(target=enter, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 10
        while self._waiting() < there + len(jobs):
            assert time.monotonic() < until
            time.sleep(0.001)

        def join() -> list[Any]:
            for thread in threads:
                thread.join(10)
            return [got[job] for job in jobs]

        return join

    def _waiting(self) -> int:
        return len(self.intake._place_free._waiters)  # type: ignore[attr-defined]


def twins(count: int) -> list[Job]:
    return [Job(function=print, dedupe_key="one") for _ in range(count)]


def test_of_twins_that_wait_for_a_place_one_is_let_in(executor: InlineExecutor) -> None:
    """The others need no place: they are told at once whose job is taken for theirs."""
    door = Door(executor)
    jobs = twins(3)
    join = door.come(*jobs)
    door.intake.leave_queue(door.first)
    (taken,) = set(join())
    assert taken in jobs
    assert list(door.intake.submitted) == [door.first, taken]


def test_who_waits_learns_of_a_quarantine_and_leaves_the_place_to_the_next(executor: InlineExecutor) -> None:
    door = Door(executor)
    job, other = Job(function=print), Job(function=print)
    join, join_other = door.come(job), door.come(other)
    door.intake.quarantined[job.job_id] = job
    door.intake.leave_queue(door.first)
    (told,) = join()
    assert isinstance(told, InvalidJobError)
    assert "is quarantined" in str(told)
    assert join_other() == [other]


def test_an_id_that_is_taken_takes_no_place(executor: InlineExecutor) -> None:
    door = Door(executor)
    door.intake.leave_queue(door.first)
    with pytest.raises(InvalidJobError, match="'first' is live already"):
        door.enter(Job(function=print, job_id="first"))
    assert door.intake._places == 1


def test_who_waits_is_told_when_the_door_is_closed(executor: InlineExecutor) -> None:
    door = Door(executor)
    join = door.come(Job(function=print), Job(function=print))
    door.intake.close()
    assert [type(told) for told in join()] == [ExecutorClosedError] * 2
    with pytest.raises(ExecutorClosedError):
        door.enter(Job(function=print), 0)


def test_a_door_that_is_closed_between_a_look_and_the_sleep_keeps_nobody_waiting(executor: InlineExecutor) -> None:
    """As by a signal handler, on the very thread that is about to sleep: nobody wakes it."""
    door = Door(executor)
    sleep = door.intake._place_free.wait

    def close_and_sleep(timeout: float | None = None) -> bool:
        door.intake.close()
        return sleep(timeout)

    door.intake._place_free.wait = close_and_sleep  # type: ignore[method-assign]
    with pytest.raises(ExecutorClosedError):
        door.enter(Job(function=print), 20)


def test_a_place_is_waited_for_as_long_as_asked(executor: InlineExecutor) -> None:
    door = Door(executor)
    began = time.monotonic()
    with pytest.raises(QueueFullError, match="holds 1 of 1 jobs"):
        door.enter(Job(function=print), 0.15)
    assert 0.15 <= time.monotonic() - began < 5
    with pytest.raises(QueueFullError):
        door.enter(Job(function=print), 0)


def test_who_closes_the_door_while_he_stands_in_it_does_not_hold_up_the_supervisor(executor: InlineExecutor) -> None:
    """As a signal handler does that waits for the end within a submission, while jobs start and leave their places."""
    door = Door(executor)
    over = threading.Event()

    def start() -> None:
        door.intake.leave_queue(door.first)
        over.set()

    with door.intake._lock:
        threading.Thread(target=start).start()
        door.intake.close()
        assert over.wait(10)
