"""Tests when running attempts are interrupted and stopped, without pools or threads."""

from __future__ import annotations

from executor_adapter import Job
from executor_adapter.pools.base import Assignment
from executor_adapter.supervision.limits import RunningAttempts
from executor_adapter.supervision.outcome import StopReason


def test_a_function_that_began_late_has_all_of_max_runtime() -> None:
    """An attempt is not stopped before its function, which a thread began a moment later, has run for max_runtime."""
    running, stopped = RunningAttempts(), list[StopReason]()
    assignment = Assignment(Job(function=print, max_runtime=1.0), 1, None)
    running.begin(assignment, 100.0, apply_max_runtime=True)
    assignment.started_at = 100.25
    for now in (101.0, 101.2, 101.25):
        assert stopped == []
        running.apply(now, lambda _: True, lambda _, reason: stopped.append(reason))
    assert stopped == [StopReason.LIMIT]


def test_a_soft_timeout_that_comes_before_the_function_is_not_lost() -> None:
    """An attempt that is past its soft_timeout before its worker has begun it is interrupted once it has."""
    running, has_begun, interrupted = RunningAttempts(), [False, False, True], list[float]()
    running.begin(Assignment(Job(function=print, soft_timeout=1e-9), 1, None), 100.0, apply_max_runtime=True)

    def interrupt(_: Assignment) -> bool:
        interrupted.append(now)
        return has_begun.pop(0)

    now = 100.0
    for _ in range(9):
        now = max(now, min(running.due, now + 1.0))
        running.apply(now, interrupt, lambda *_: None)
    assert len(interrupted) == 3
    assert interrupted == sorted(set(interrupted))
