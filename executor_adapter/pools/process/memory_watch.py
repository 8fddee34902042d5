"""Measures the memory of running attempts' process trees, as long as any of them has a limit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from executor_adapter.exceptions import MemoryLimitError
from executor_adapter.job import size_text
from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.pools.memory.available import FASTEST_GROWTH
from executor_adapter.pools.memory.tree_memory import measure
from executor_adapter.pools.process.handle import WorkerHandle
from executor_adapter.worker.process_tree import resident

MIN_INTERVAL = 0.02
MAX_INTERVAL = 0.5
"""Seconds between two measurements: the nearer an attempt is to its limit, the sooner the next one."""
MAX_SHARE_OF_TIME = 0.1
"""Share of the supervisor's time that measurements may take: trees of many processes are measured less often."""

_MAX_MEASURED_EXACTLY = 3


class MemoryWatch:
    """Calls `on_exceeded(assignment, error)` once for each attempt whose tree outgrew its limit."""

    def __init__(self, supervisor: PoolSupervisor, on_exceeded: Callable[[Assignment, MemoryLimitError], None]) -> None:
        self._supervisor = supervisor
        self._on_exceeded = on_exceeded
        self.watched: dict[WorkerHandle, Assignment] = {}
        """The attempt with a limit that each worker runs."""
        self._timer: Timer | None = None
        self._due = 0.0

    def add(self, worker: WorkerHandle, assignment: Assignment) -> None:
        """Watch an attempt that starts now."""
        self.watched[worker] = assignment
        self._schedule(_seconds_to_grow(assignment.memory_limit or 0))

    def remove(self, worker: WorkerHandle) -> None:
        """Stop watching the worker's attempt: it has ended, or was taken back."""
        del self.watched[worker]
        if not self.watched and self._timer is not None:
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
        room = [self._check(worker, assignment) for worker, assignment in list(self.watched.items())]
        if self.watched:
            took = self._supervisor.now() - began
            self._schedule(max(_seconds_to_grow(min(room)), took / MAX_SHARE_OF_TIME))

    def _check(self, worker: WorkerHandle, assignment: Assignment) -> int:
        """Measure one attempt. Return the bytes that it may still take."""
        limit = assignment.memory_limit or 0
        if worker.process.pid is None:
            return limit
        try:
            tree = measure(worker.process.pid, limit)
        except OSError:  # No descriptor is left to read /proc with.
            return 0
        assignment.peak_rss = max(assignment.peak_rss or 0, tree.resident)
        if tree.used > limit:
            del self.watched[worker]
            error = MemoryLimitError(
                f"its process tree held {size_text(tree.used)}, more than memory_limit={size_text(limit)}: "
                "raise it, or do less at once"
            )
            self._on_exceeded(assignment, error)
        return limit - tree.used


def _seconds_to_grow(room: int) -> float:
    return min(max(room / FASTEST_GROWTH, MIN_INTERVAL), MAX_INTERVAL)


def largest_attempt(workers: Iterable[WorkerHandle]) -> tuple[Assignment, int] | None:
    """Return the running attempt that holds the most memory, and its bytes; see `WorkerPool.largest_attempt`."""
    pids = {worker: worker.process.pid for worker in workers if worker.process.pid is not None and worker.queue}
    trees = {worker: measure(pid, sys.maxsize) for worker, pid in pids.items()}
    # Without what a worker shares with the guardian: that stays.
    at_most = {worker: tree.used - worker.process.rss_when_ready for worker, tree in trees.items()}
    largest = sorted(pids, key=at_most.__getitem__, reverse=True)[:_MAX_MEASURED_EXACTLY]
    held = {worker: trees[worker].at_least - worker.process.rss_when_ready for worker in largest}
    if any(at_most[worker] > held[largest[0]] for worker in largest[1:]):
        # Exactly, only where it decides: it takes the kernel a millisecond for each 100 MiB, and a tenth of a second
        # and more where the tree grows meanwhile, in which it may take all that is left.
        held = {worker: measure(pids[worker], 0).used for worker in largest}
    found = max(largest, key=held.__getitem__, default=None)
    # Last, because one may have ended while they were measured.
    exiting = next((worker for worker, pid in pids.items() if not resident(pid)), None)
    if exiting is not None:
        return exiting.queue[0], 0
    if found is None:
        return None
    return found.queue[0], 0 if found.kill_requested else max(1, held[found])
