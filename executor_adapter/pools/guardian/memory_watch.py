"""Measures the memory of running attempts' process trees, as long as any of them has a limit."""

from __future__ import annotations

from collections.abc import Callable

from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.pools.guardian.worker_handle import ForkedWorkerHandle
from executor_adapter.worker import tree_resident

CHECK_INTERVAL = 0.05
"""Seconds between two measurements."""


class MemoryWatch:
    """Calls `on_exceeded(worker, assignment, resident)` once for each attempt whose tree outgrew its limit."""

    def __init__(
        self, supervisor: PoolSupervisor, on_exceeded: Callable[[ForkedWorkerHandle, Assignment, int], None]
    ) -> None:
        self._supervisor = supervisor
        self._on_exceeded = on_exceeded
        self._watched: dict[ForkedWorkerHandle, Assignment] = {}
        self._timer: Timer | None = None

    def add(self, worker: ForkedWorkerHandle, assignment: Assignment) -> None:
        """Watch an attempt that starts now."""
        self._watched[worker] = assignment
        if self._timer is None:
            self._schedule()

    def remove(self, worker: ForkedWorkerHandle) -> None:
        """Stop watching the worker's attempt, if it is watched."""
        if self._watched.pop(worker, None) is not None and not self._watched and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self._timer = self._supervisor.call_at(self._supervisor.now() + CHECK_INTERVAL, self._check_all)

    def _check_all(self) -> None:
        self._timer = None
        for worker, assignment in list(self._watched.items()):
            if worker.pid is not None:
                self._check(worker, assignment, tree_resident(worker.pid))
        if self._watched:
            self._schedule()

    def _check(self, worker: ForkedWorkerHandle, assignment: Assignment, resident: int) -> None:
        assignment.peak_rss = max(assignment.peak_rss or 0, resident)
        if assignment.memory_limit is not None and resident > assignment.memory_limit:
            del self._watched[worker]
            self._on_exceeded(worker, assignment, resident)
