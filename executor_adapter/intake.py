"""The door of an executor: what callers' threads do when they submit, and the jobs that are inside."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from executor_adapter.exceptions import ExecutorClosedError, InvalidJobError, QueueFullError
from executor_adapter.functions import is_coroutine_function
from executor_adapter.futures import JobFuture
from executor_adapter.job import Job, JobStatus
from executor_adapter.pools import POOL_NAMES, PoolKinds, pool_kinds
from executor_adapter.pools.base import WorkerPool


class Intake:
    """Lets jobs in while there is a place, one for each id and dedupe key. Any thread may call it."""

    def __init__(self, max_pending: int | None) -> None:
        self.closed = False
        self.jobs: dict[str, Job] = {}
        """Those that are not over, by id."""
        self.submitted: deque[Job] = deque()
        """Those that the supervisor has not seen yet."""
        self.quarantined: dict[str, Job] = {}
        """Those that killed more workers than their policy allows, by id: let in again only once released."""
        self._max_pending = max_pending
        self._places = max_pending
        self._by_dedupe_key: dict[str, Job] = {}
        # Re-entrant: a signal handler may shut the executor down while its thread is in here.
        self._lock = threading.RLock()
        self._place_free = threading.Condition(self._lock)

    def twin(self, job: Job) -> JobFuture | None:
        """The future of the live job with the same dedupe_key."""
        if job.dedupe_key is None:
            return None
        other = self._by_dedupe_key.get(job.dedupe_key)
        return None if other is None else other._live.future

    def enter(self, job: Job, future: JobFuture, timeout: float | None, *, needs_place: bool = True) -> JobFuture:
        """Let the job in with its future; that of its live twin instead, if it has one.

        Waits `timeout` seconds for a place, or without end, unless it needs none.

        Raises:
            QueueFullError, ExecutorClosedError, InvalidJobError
        """
        with self._lock:
            if (twin := self.twin(job)) is not None:
                return twin
            self._refuse_quarantined(job)
            if needs_place:
                self._take_place(timeout)
            self.refuse_if_closed()
            if self.jobs.setdefault(job.job_id, job) is not job:
                if needs_place:
                    self._give_place()
                raise InvalidJobError(f"a job with the id {job.job_id!r} is live already: ids must be unique")
            if job.dedupe_key is not None:
                self._by_dedupe_key[job.dedupe_key] = job
            job._live.place = needs_place
            job._live.future = future
            self.submitted.append(job)
            if self.closed:
                self._turn_back(job)
            return future

    def _turn_back(self, job: Job) -> None:
        """A signal handler closed the door while the job was in it; the supervisor may be gone, or have seen it yet."""
        try:
            self.submitted.remove(job)
        except ValueError:
            return
        self.leave(job)
        job._live.future = None
        self.refuse_if_closed()

    def refuse_if_closed(self) -> None:
        if self.closed:
            raise ExecutorClosedError("the executor is shut down: submit before, or make another")

    def _refuse_quarantined(self, job: Job) -> None:
        known = self.quarantined.get(job.job_id)
        if known is not None:
            crashes = known._live.crashes
            raise InvalidJobError(
                f"job {job.job_id} is quarantined after {crashes} crashes: release({job.job_id!r}) first"
            )

    def leave_queue(self, job: Job) -> None:
        """The job has started, or is over: its place is free."""
        if job._live.place:
            job._live.place = False
            if self._places is not None:
                with self._lock:
                    self._give_place()

    def leave(self, job: Job) -> None:
        """The job is over."""
        self.leave_queue(job)
        self.jobs.pop(job.job_id, None)
        if job.dedupe_key is not None:
            self._by_dedupe_key.pop(job.dedupe_key, None)

    def close(self) -> None:
        """Let nobody in any more, and tell those who wait for a place."""
        with self._lock:
            self.closed = True
            self._place_free.notify_all()

    def _take_place(self, timeout: float | None) -> None:
        if self._places is None:
            return
        if not self._place_free.wait_for(lambda: self.closed or bool(self._places), timeout):
            held = self._max_pending
            raise QueueFullError(
                f"the queue holds {held} of {held} jobs: raise max_pending, or wait longer for a place"
            )
        self._places -= 1

    def _give_place(self) -> None:
        if self._places is not None:
            self._places += 1
            self._place_free.notify()


def check_job(job: Job, kind_of: PoolKinds | None = None) -> tuple[str, Any]:
    """The name of the pool that the job is to run in, and what that pool prepared for it.

    `kind_of`: the pools of the executor; those of the default start method otherwise.

    Raises:
        InvalidJobError: it was submitted before, or asks for what that pool cannot do.
        JobSerializationError: its function or arguments cannot travel to that pool.
    """
    if job._live.future is not None or job._live.status is not JobStatus.PENDING:
        raise InvalidJobError(f"job {job.job_id} was submitted already: submit a copy, job.model_copy()")
    name: str = job.pool
    if name == "auto":
        name = "coroutine" if is_coroutine_function(job.function) else "thread"
    if name not in POOL_NAMES:
        raise InvalidJobError(f"pool={name!r} is not available here: choose one of {', '.join(POOL_NAMES)}")
    kind = (kind_of or pool_kinds())(name)
    if job.memory_limit is not None and not kind.can_limit_memory:
        raise InvalidJobError(_memory_refusal(name))
    if job.soft_timeout is not None:
        _check_soft_timeout(job.soft_timeout, job.max_runtime, name, kind)
    return name, kind.prepare(job)


def _memory_refusal(name: str) -> str:
    if name == "process":
        return (
            "memory_limit needs executor.start_method='guardian', which needs Linux, and here it is 'spawn': "
            "leave it out, or let the function limit itself (resource.setrlimit)"
        )
    return f"memory_limit needs a process of its own, and pool={name!r} has none: pool='process'"


def _check_soft_timeout(soft: float, hard: float | None, name: str, kind: type[WorkerPool]) -> None:
    if not kind.can_stop_soft:
        raise InvalidJobError(f"soft_timeout={soft} cannot be kept in pool={name!r}: choose 'thread' or 'process'")
    if hard is not None and soft >= hard:
        raise InvalidJobError(f"soft_timeout={soft} leaves no time before max_runtime={hard}")
