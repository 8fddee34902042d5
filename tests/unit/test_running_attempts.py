"""Tests when running attempts are interrupted and stopped, without pools or threads."""

from __future__ import annotations

from executor_adapter import Job
from executor_adapter.job import NearLimit
from executor_adapter.pools import Assignment
from executor_adapter.supervision.limits import NearLimits, RunningAttempts
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


def test_an_attempt_is_near_its_limit_once_before_it_is_stopped() -> None:
    """An attempt that has used its share of max_runtime is noted once, on time, and stopped at the limit."""
    near_limits, noted, stopped = NearLimits(0.8), list[NearLimit](), list[float]()
    near_limits.observers.append(noted.append)
    running = RunningAttempts(near_limits)
    running.begin(Assignment(Job(function=print, max_runtime=10.0), 1, None), 100.0, apply_max_runtime=True)
    running.begin(Assignment(Job(function=print, max_runtime=99.0), 1, None), 100.0, apply_max_runtime=True)
    turns = {}
    for now in (107.9, 108.0, 109.0, 110.0):
        turns[now] = running.due <= now
        running.apply(now, lambda _: True, lambda *_, at=now: stopped.append(at))
    assert turns == {107.9: False, 108.0: True, 109.0: False, 110.0: True}, "no turn of the loop is in vain"
    assert [(near.limit, near.used, near.of) for near in noted] == [("max_runtime", 8.0, 10.0)]
    assert stopped == [110.0]


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
