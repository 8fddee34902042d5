"""The pools of one executor: each made when the first job asks for it, all closed together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from executor_adapter.job.model import Job
from executor_adapter.pools.base import Assignment, WorkerPool
from executor_adapter.supervision.running_attempts import NEVER

PATIENCE = 0.05
"""Seconds that a job lies ready behind one that runs, before it is taken back for another worker."""


class PoolSet:
    """Passes what the supervisor wants of an attempt to the pool it runs in. The supervisor's own."""

    def __init__(self, make_pool: Callable[[str], WorkerPool], now: Callable[[], float]) -> None:
        self.made: dict[str, WorkerPool] = {}
        self.relieve_at = NEVER
        """When to look for jobs that lie ready behind one that takes long after all."""
        self._make_pool = make_pool
        self._now = now
        self._to_close = 0

    def of(self, job: Job) -> WorkerPool:
        name = job.live.pool
        pool = self.made.get(name)
        if pool is None:
            pool = self.made[name] = self._make_pool(name)
        return pool

    def start(self, assignment: Assignment) -> None:
        """
        Raises:
            Exception: no worker could be started.
        """
        self.of(assignment.job).start(assignment)

    def start_behind(self, assignment: Assignment) -> bool:
        """Lay the assignment ready behind a short one; False where no worker has room."""
        if not self.made[assignment.job.live.pool].queue_behind(assignment):
            return False
        if self.relieve_at == NEVER:
            self.relieve_at = self._now() + PATIENCE
        return True

    def relieve_if_due(self) -> None:
        """Let no job wait behind one that was taken for short and is not."""
        now = self._now()
        if self.relieve_at <= now:
            waiting = [pool.hand_back_queued(now - PATIENCE) for pool in self.made.values()]
            self.relieve_at = now + PATIENCE if any(waiting) else NEVER

    def flush(self) -> None:
        for pool in self.made.values():
            pool.flush()

    def recall(self, assignment: Assignment) -> bool:
        return self.of(assignment.job).recall(assignment)

    def interrupt(self, assignment: Assignment) -> None:
        self.of(assignment.job).interrupt(assignment)

    def close(self, on_closed: Callable[[], None]) -> None:
        """End all workers; `on_closed` is called when nothing is left. Calling again while it goes on does nothing."""
        if self._to_close:
            return

        def one_closed() -> None:
            self._to_close -= 1
            if not self._to_close:
                on_closed()

        self._to_close = len(self.made) + 1
        for pool in self.made.values():
            pool.close(one_closed)
        one_closed()

    def stats(self) -> Mapping[str, int]:
        """Workers that are busy, and attempts that were written off, over all pools; from any thread."""
        pools = list(self.made.values())
        return {
            "workers_busy": sum(pool.busy for pool in pools),
            "abandoned_threads": sum(getattr(pool, "abandoned", 0) for pool in pools),
        }
