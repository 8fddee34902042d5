"""The door of an executor: what callers' threads do when they submit, and the jobs that are inside."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from executor_adapter.exceptions import ExecutorClosedError, InvalidJobError, QueueFullError
from executor_adapter.job.functions import function_reference, is_coroutine_function, is_generator_function
from executor_adapter.job.model import NEW_ID_HINT, Job
from executor_adapter.job.quarantine import Quarantine
from executor_adapter.job.status import JobStatus
from executor_adapter.pools import PoolKinds, pool_kinds
from executor_adapter.pools.base import WorkerPool
from executor_adapter.supervision.futures import JobFuture

LOOK_SECONDS = 0.1
"""Between two looks whether the door is closed: a signal handler may close it between a thread's look and its sleep."""


class JobIntake:
    """Lets jobs in while there is a place, one for each id and dedupe key. Any thread may call it."""

    def __init__(self, max_pending: int | None) -> None:
        self.closed = False
        self.jobs: dict[str, Job] = {}
        """Those that are not over, by id."""
        self.submitted: deque[Job] = deque()
        """Those that the supervisor has not seen yet."""
        self.quarantined = Quarantine()
        """Those that killed more workers than their policy allows, by id: let in again only once released."""
        self._refusal = "the executor is shut down: submit before, or make another"
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
        return None if other is None else other.live.future

    def enter(self, job: Job, future: JobFuture, timeout: float | None, *, needs_place: bool = True) -> JobFuture:
        """Let the job in with its future; that of its live twin instead, if it has one.

        Waits `timeout` seconds for a place, or without end, unless it needs none.

        Raises:
            QueueFullError, ExecutorClosedError, InvalidJobError
        """
        with self._lock:
            takes_place = needs_place and self._places is not None
            if takes_place and not self._has_place():
                self._wait_for_place(job, timeout)
            if (twin := self.twin(job)) is not None:
                return twin
            self._refuse_quarantined(job)
            if job.job_id in self.jobs:
                raise InvalidJobError(
                    f"a job with the id {job.job_id!r} is live already: wait for it, or {NEW_ID_HINT}"
                )
            if job.dedupe_key is not None:
                self._place_free.notify_all()  # twins need no place
            # From here on nothing is called until the job is submitted, so that no signal handler comes between: one
            # that shuts the executor down finds the job inside, or has it refused.
            if self.closed:
                raise ExecutorClosedError(self._refusal)
            if takes_place:
                self._places -= 1  # type: ignore[operator]
            job.live.place = needs_place
            job.live.future = future
            if job.dedupe_key is not None:
                self._by_dedupe_key[job.dedupe_key] = job
            self.jobs[job.job_id] = job
            self.submitted.append(job)
            return future

    def holds(self, job: Job) -> bool:
        """Whether the job is live here; if so the supervisor is told of it before whatever it is asked from now on."""
        with self._lock:  # whoever is in the door is through it, then
            return self.jobs.get(job.job_id) is job

    def all_held(self) -> list[Job]:
        """Those of which this can be said."""
        with self._lock:
            return list(self.jobs.values())

    def refuse_if_closed(self) -> None:
        if self.closed:
            raise ExecutorClosedError(self._refusal)

    def _refuse_quarantined(self, job: Job) -> None:
        known = self.quarantined.get(job.job_id)
        if known is not None:
            crashes = known.state.crashes
            raise InvalidJobError(
                f"job {job.job_id} is quarantined after {crashes} crashes: release({job.job_id!r}) first"
            )

    def leave_queue(self, job: Job) -> None:
        """The job has started, or is over: its place is free."""
        if job.live.place:
            job.live.place = False
            if self._places is not None:
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

    def leave_to_parent(self) -> None:
        """In a forked process: let nobody in, whatever another thread was at in here."""
        self._lock = threading.RLock()
        self._place_free = threading.Condition(self._lock)
        self._refusal = "the executor was made in another process, which this one was forked from: make one here"
        self.closed = True

    def _wait_for_place(self, job: Job, timeout: float | None) -> None:
        """Return once there is one, or none is needed; others may have come and gone meanwhile."""
        ends = time.monotonic() + (float("inf") if timeout is None else timeout)
        while not (self._has_place() or self._needs_none(job)):
            left = ends - time.monotonic()
            if left <= 0:
                held = self._max_pending
                raise QueueFullError(
                    f"the queue holds {held} of {held} jobs: raise max_pending, or wait longer for a place"
                )
            self._place_free.wait(min(left, LOOK_SECONDS))
        if self._needs_none(job):
            self._place_free.notify()  # if it was woken for a place, that is the next one's

    def _has_place(self) -> bool:
        return self._places is not None and self._places > 0

    def _needs_none(self, job: Job) -> bool:
        """Whether the job is refused anyway, or its twin taken for it."""
        known = self.twin(job) is not None or job.job_id in self.jobs or job.job_id in self.quarantined
        return self.closed or known

    def _give_place(self) -> None:
        # Nobody wants one once it is closed; and a signal handler that waits for the end may be who has the lock.
        while not self.closed:
            if self._lock.acquire(timeout=LOOK_SECONDS):
                self._places = (self._places or 0) + 1
                self._place_free.notify()
                self._lock.release()
                return


def check_job(job: Job, kind_of: PoolKinds | None = None) -> tuple[str, Any]:
    """The name of the pool that the job is to run in, and what that pool prepared for it.

    `kind_of`: the pools of the executor; those of the default start method otherwise.

    Raises:
        InvalidJobError: it was submitted before, or asks for what that pool cannot do.
        JobSerializationError: its function or arguments cannot travel to that pool.
    """
    if job.live.future is not None or job.state.status is not JobStatus.PENDING:
        raise InvalidJobError(f"job {job.job_id} was submitted already: {_way_to_another(job)}")
    if is_generator_function(job.function):
        raise InvalidJobError(_generator_refusal(job.function))
    name: str = job.pool
    if name == "auto":
        name = "coroutine" if is_coroutine_function(job.function) else "thread"
    kind = (kind_of or pool_kinds())(name)
    if job.memory_limit is not None and not kind.can_limit_memory:
        raise InvalidJobError(_memory_refusal(name))
    if job.soft_timeout is not None:
        _check_soft_timeout(job.soft_timeout, job.max_runtime, name, kind)
    return name, kind.prepare(job)


def _way_to_another(job: Job) -> str:
    if job.status.is_terminal:
        return "submit a copy, job.model_copy()"
    return "submit a copy with an id of its own, job.model_copy(update={'job_id': ...})"


def _generator_refusal(function: Any) -> str:
    name = function if isinstance(function, str) else function_reference(function)
    return (
        f"{name} is a generator function: a call of it makes a generator and runs nothing. Have it return a list, or "
        "submit a function that goes through it"
    )


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
        raise InvalidJobError(f"soft_timeout={soft} leaves no time before max_runtime={hard}: give less")
