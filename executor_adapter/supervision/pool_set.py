"""The pools of one executor: each is made when the first job asks for it, and all are closed together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from executor_adapter.job import Job
from executor_adapter.pools import Assignment, Recall, WorkerPool
from executor_adapter.supervision.dispatcher import SlotLimits
from executor_adapter.supervision.running_attempts import NEVER

MAX_QUEUED_BEHIND_SECONDS = 0.05
"""Max seconds that a job waits in a worker behind a running one; then it is taken back for another worker."""


class PoolSet:
    """Passes the supervisor's requests about an attempt to the pool that runs it. Supervisor thread only."""

    def __init__(self, make_pool: Callable[[str], WorkerPool], now: Callable[[], float]) -> None:
        self.made: dict[str, WorkerPool] = {}
        self.next_check_at = NEVER
        """The next time to check for jobs that wait behind a job that takes longer than expected."""
        self._make_pool = make_pool
        self._now = now
        self._to_close = 0
        self._lease_until = NEVER

    def of(self, job: Job) -> WorkerPool:
        """Return the pool that the job runs in."""
        name = job.live.pool
        pool = self.made.get(name)
        if pool is None:
            pool = self.made[name] = self._make_pool(name)
            pool.set_lease(self._lease_until)
        return pool

    def start(self, assignment: Assignment) -> None:
        """Start an attempt in its pool.

        Raises:
            Exception: no worker could be started.
        """
        self.of(assignment.job).start(assignment)

    def reserve_worker(self, job: Job, on_ready: Callable[[], None]) -> None:
        """Keep a worker for the job's next attempt; call `on_ready` when it can run that, or when none can be made."""
        try:
            pool = self.of(job)
        except Exception:
            on_ready()  # The attempt fails for the same reason, in the usual way.
        else:
            pool.reserve_worker(job, on_ready)

    def queue_behind(self, assignment: Assignment) -> bool:
        """Queue an attempt in a worker behind a short one; False where no worker has room."""
        if not self.made[assignment.job.live.pool].queue_behind(assignment):
            return False
        if self.next_check_at == NEVER:
            self.next_check_at = self._now() + MAX_QUEUED_BEHIND_SECONDS
        return True

    def hand_back_if_due(self) -> None:
        """Take back jobs that wait behind a job that takes longer than expected."""
        now = self._now()
        if self.next_check_at <= now:
            waiting = [pool.hand_back_queued(now - MAX_QUEUED_BEHIND_SECONDS) for pool in self.made.values()]
            self.next_check_at = now + MAX_QUEUED_BEHIND_SECONDS if any(waiting) else NEVER

    def resize(self, limits: SlotLimits) -> None:
        """Keep workers for so many attempts at once, and take back what would start beyond that."""
        pools = dict(self.made)
        for name, pool in pools.items():
            pool.resize(limits.of(name))

        def is_over(name: str) -> bool:
            return pools[name].busy > limits.of(name) or sum(pool.busy for pool in pools.values()) > limits.total

        for name, pool in pools.items():
            if is_over(name):
                pool.hand_back_queued(NEVER)
                for assignment in pool.unstarted():
                    if assignment.job.live.driver is None and is_over(name):
                        pool.recall(assignment)

    def set_lease(self, until: float) -> None:
        """Let the pools end their attempts at this `lease_time`, unless a later one is set by then."""
        self._lease_until = until
        for pool in self.made.values():
            pool.set_lease(until)

    def flush(self) -> None:
        """Send what the pools have gathered for their workers in this turn."""
        for pool in self.made.values():
            pool.flush()

    def recall(self, assignment: Assignment) -> Recall:
        """Take back an attempt that has not begun."""
        return self.of(assignment.job).recall(assignment)

    def interrupt(self, assignment: Assignment) -> bool:
        """Raise SoftTimeoutError inside the function of an attempt; return False if it has not begun."""
        return self.of(assignment.job).interrupt(assignment)

    def close(self, on_closed: Callable[[], None]) -> None:
        """End all workers, and call `on_closed` when none is left. Calling it again meanwhile does nothing."""
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
        """Return the busy workers and the abandoned attempts over all pools. Any thread may call it."""
        pools = list(self.made.values())
        return {
            "workers_busy": sum(pool.busy for pool in pools),
            "abandoned_threads": sum(getattr(pool, "abandoned", 0) for pool in pools),
        }
