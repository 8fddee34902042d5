"""Tests when running attempts are interrupted and stopped, without pools or threads."""

from __future__ import annotations

from executor_adapter import Job
from executor_adapter.pools import Assignment
from executor_adapter.supervision.running_attempts import RunningAttempts
from executor_adapter.supervision.stop_reason import StopReason


def test_a_function_that_began_late_has_all_of_max_runtime() -> None:
    """An attempt is not stopped before its function, which a thread began a moment later, has run for max_runtime."""
    running, stopped = RunningAttempts(), list[StopReason]()
    assignment = Assignment(Job(function=print, max_runtime=1.0), 1, None)
    running.add(assignment, 100.0, apply_max_runtime=True)
    assignment.started_at = 100.25
    for now in (101.0, 101.2, 101.25):
        assert stopped == []
        running.apply(now, lambda _: None, lambda _, reason: stopped.append(reason))
    assert stopped == [StopReason.LIMIT]
