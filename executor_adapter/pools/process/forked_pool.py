"""The process pool whose workers a guardian forks: it also limits their memory."""

from __future__ import annotations

from typing import Any, ClassVar

from executor_adapter.exceptions import MemoryLimitError
from executor_adapter.pools.base import Assignment, PoolSupervisor
from executor_adapter.pools.process.exit_errors import memory_error
from executor_adapter.pools.process.forked_worker import ForkedWorkerHandle
from executor_adapter.pools.process.forked_workers import ForkedWorkers
from executor_adapter.pools.process.memory_watch import MemoryWatch, largest_attempt
from executor_adapter.pools.process.pool import WorkerProcessPool


class ProcessPool(WorkerProcessPool[ForkedWorkerHandle]):
    """Worker processes under a guardian, which imports what is to be preloaded."""

    can_limit_memory: ClassVar[bool] = True
    workers_kind = ForkedWorkers
    workers: ForkedWorkers

    def __init__(self, supervisor: PoolSupervisor, max_workers: int, **options: Any) -> None:
        super().__init__(supervisor, max_workers, **options)
        self._memory = MemoryWatch(supervisor, self._on_memory_exceeded)

    def _measure(self, worker: ForkedWorkerHandle, assignment: Assignment, limit: int) -> None:
        self._memory.add(worker, assignment, limit)

    def _stop_measuring(self, worker: ForkedWorkerHandle) -> None:
        self._memory.remove(worker)

    def largest_attempt(self) -> tuple[Assignment, int] | None:
        return largest_attempt(self._busy_workers)

    def end_for_memory(self, assignment: Assignment, error: MemoryLimitError) -> None:
        if assignment.worker is not None:
            self._kill_for_memory(assignment.worker, error)

    def free_memory(self) -> None:
        self.workers.shut_down_large()

    def _on_memory_exceeded(self, worker: ForkedWorkerHandle, assignment: Assignment, used: int) -> None:
        self._kill_for_memory(worker, memory_error(assignment, used))

    def _kill_for_memory(self, worker: ForkedWorkerHandle, error: MemoryLimitError) -> None:
        worker.crash_cause = error
        self.workers.retire(worker)
        worker.kill()
