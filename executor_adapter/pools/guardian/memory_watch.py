"""Measures the memory of running attempts' process trees, as long as any of them has a limit."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.pools.guardian.worker_handle import ForkedWorkerHandle
from executor_adapter.pools.memory.level import FASTEST_GROWTH
from executor_adapter.pools.memory.tree_memory import measure

MIN_INTERVAL = 0.02
MAX_INTERVAL = 0.5
"""Seconds between two measurements: the nearer an attempt is to its limit, the sooner the next one."""
MAX_SHARE_OF_TIME = 0.1
"""Share of the supervisor's time that measurements may take: trees of many processes are measured less often."""

_MAX_MEASURED_EXACTLY = 3


class _Watched(NamedTuple):
    assignment: Assignment
    limit: int


class MemoryWatch:
    """Calls `on_exceeded(worker, assignment, used)` once for each attempt whose tree outgrew its limit."""

    def __init__(
        self, supervisor: PoolSupervisor, on_exceeded: Callable[[ForkedWorkerHandle, Assignment, int], None]
    ) -> None:
        self._supervisor = supervisor
        self._on_exceeded = on_exceeded
        self._watched: dict[ForkedWorkerHandle, _Watched] = {}
        self._timer: Timer | None = None
        self._due = 0.0

    def add(self, worker: ForkedWorkerHandle, assignment: Assignment, limit: int) -> None:
        """Watch an attempt that starts now."""
        self._watched[worker] = _Watched(assignment, limit)
        self._schedule(_seconds_to_grow(limit))

    def remove(self, worker: ForkedWorkerHandle) -> None:
        """Stop watching the worker's attempt, if it is watched."""
        if self._watched.pop(worker, None) is not None and not self._watched:
            self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, seconds: float) -> None:
        due = self._supervisor.now() + seconds
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = self._supervisor.call_at(due, self._check_all)

    def _check_all(self) -> None:
        self._timer = None
        began = self._supervisor.now()
        room = [self._check(worker, watched) for worker, watched in list(self._watched.items())]
        if self._watched:
            took = self._supervisor.now() - began
            self._schedule(max(_seconds_to_grow(min(room)), took / MAX_SHARE_OF_TIME))

    def _check(self, worker: ForkedWorkerHandle, watched: _Watched) -> int:
        """Measure one attempt. Return the bytes that it may still take."""
        assignment, limit = watched
        if worker.pid is None:
            return limit
        tree = measure(worker.pid, limit)
        assignment.peak_rss = max(assignment.peak_rss or 0, tree.resident)
        if tree.used > limit:
            del self._watched[worker]
            self._on_exceeded(worker, assignment, tree.used)
        return limit - tree.used


def _seconds_to_grow(room: int) -> float:
    return min(max(room / FASTEST_GROWTH, MIN_INTERVAL), MAX_INTERVAL)


def largest_attempt(workers: Iterable[ForkedWorkerHandle]) -> tuple[Assignment, int] | None:
    """Return the running attempt that holds the most memory, and its bytes, if there is one."""
    running = [worker for worker in workers if worker.pid is not None and not worker.kill_requested]
    pids = {worker.queue[0]: worker.pid for worker in running if worker.queue and worker.pid is not None}
    # Exactly measured, the largest few only: it takes the kernel a millisecond for each 100 MiB.
    roughly = sorted(pids, key=lambda assignment: measure(pids[assignment], sys.maxsize).used, reverse=True)
    exactly = [(assignment, measure(pids[assignment], 0).used) for assignment in roughly[:_MAX_MEASURED_EXACTLY]]
    return max(exactly, key=operator.itemgetter(1), default=None)
