"""How much memory the process trees of running attempts hold, looked at while any of them has a limit."""

from __future__ import annotations

from collections.abc import Callable

from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.pools.guardian.worker_handle import WorkerHandle
from executor_adapter.worker.process_tree import tree_resident

EVERY = 0.05
"""Seconds between two looks."""


class MemoryWatch:
    """Calls `on_exceeded(worker, assignment, resident)` once for each attempt whose tree outgrew its limit."""

    def __init__(
        self, supervisor: PoolSupervisor, on_exceeded: Callable[[WorkerHandle, Assignment, int], None]
    ) -> None:
        self._supervisor = supervisor
        self._on_exceeded = on_exceeded
        self._watched: dict[WorkerHandle, Assignment] = {}
        self._timer: Timer | None = None

    def add(self, worker: WorkerHandle, assignment: Assignment) -> None:
        self._watched[worker] = assignment
        if self._timer is None:
            self._look_later()

    def remove(self, worker: WorkerHandle) -> None:
        if self._watched.pop(worker, None) is not None and not self._watched and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._timer = self._supervisor.call_at(self._supervisor.now() + EVERY, self._look)

    def _look(self) -> None:
        self._timer = None
        for worker, assignment in list(self._watched.items()):
            if worker.pid is not None:
                self._look_at(worker, assignment, tree_resident(worker.pid))
        if self._watched:
            self._look_later()

    def _look_at(self, worker: WorkerHandle, assignment: Assignment, held: int) -> None:
        assignment.peak_rss = max(assignment.peak_rss or 0, held)
        if assignment.memory_limit is not None and held > assignment.memory_limit:
            del self._watched[worker]
            self._on_exceeded(worker, assignment, held)
