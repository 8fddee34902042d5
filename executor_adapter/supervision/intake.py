"""Admits jobs to an executor, in the threads of the submitters, and holds the live jobs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from executor_adapter.exceptions import ExecutorClosedError, InvalidJobError, QueueFullError
from executor_adapter.job import NEW_ID_HINT, Job, JobStatus, Quarantine, check_is_new
from executor_adapter.supervision.futures import JobFuture

RECHECK_INTERVAL = 0.1
"""Seconds between two checks whether the intake is closed: a signal handler may close it right before a wait."""


class JobIntake:
    """Admits jobs while there is a place, one for each id and dedupe key. Any thread may call it.

    `may_wait` returns whether the caller may wait for a place. `waiting` makes a context manager for the wait: a job
    that waits for a place must not keep the slot that frees it.
    """

    def __init__(
        self,
        max_pending: int | None,
        may_wait: Callable[[], bool],
        waiting: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.closed = False
        self.jobs: dict[str, Job] = {}
        """The live jobs, by id."""
        self.admitted = 0
        """How many jobs were admitted so far."""
        self.unwritten: dict[Job, Any] = {}
        """Jobs that were admitted and that no store has yet, with what it needs of each."""
        self.submitted: deque[Job] = deque()
        """Jobs that the supervisor has not accepted yet."""
        self.quarantined = Quarantine()
        """Jobs that killed more workers than their policy allows, by id. They are admitted again only once released."""
        self._refusal = "the executor is shut down: submit before that, or make another executor"
        self._may_wait = may_wait
        self._waiting = waiting
        self._max_pending = max_pending
        self._places = max_pending
        self._by_dedupe_key: dict[str | None, dict[Job, None]] = {}
        """The live jobs with each key: recovered ones need none of their own."""
        # Re-entrant: a signal handler may shut the executor down while its thread holds the lock.
        self._lock = threading.RLock()
        self._place_free = threading.Condition(self._lock)

    def twin(self, job: Job) -> JobFuture | None:
        """Return the future of the live job with the same dedupe_key, if there is one."""
        twins = tuple(self._by_dedupe_key.get(job.dedupe_key, ()))
        return twins[0].live.future if twins else None

    def enter(
        self,
        job: Job,
        future: JobFuture,
        timeout: float | None,
        *,
        is_new: bool,
        prepare: Callable[[], object],
        stored: Any,
    ) -> JobFuture:
        """Admit the job and return its future; or the future of its live twin, if it has one.

        Waits for a place, at most `timeout` seconds if that is not None. One that is not new, since a host that has
        died had admitted it, needs no place and has no twin. A job that is refused, and the one that it may be already,
        stay as they were: `prepare` alone changes the job for its supervisor, and is called only where the job is not
        live. `stored` is what the store needs, None for nothing.

        Raises:
            QueueFullError: no place was free in time; at once in an observer, which runs on the thread that frees them.
            ExecutorClosedError: the executor is shut down.
            InvalidJobError: the job is quarantined, was submitted before, or its id is taken.
        """
        with self._lock:
            takes_place = is_new and self._places is not None
            if takes_place and not self._has_place():
                with self._waiting():
                    self._wait_for_place(job, timeout)
            if is_new and job.dedupe_key is not None and (twin := self.twin(job)) is not None:
                return twin
            if self.quarantined:
                self._refuse_quarantined(job)
            if job.live.future is not None or job.state.status is not JobStatus.PENDING or job.job_id in self.jobs:
                self._refuse_known(job)
            if job.dedupe_key is not None:
                self._place_free.notify_all()  # Twins need no place.
            prepare()
            # From here on nothing is called until the job is submitted, so no signal handler can run in between. A
            # handler that shuts the executor down therefore finds the job admitted, or the job is refused.
            if self.closed:
                raise ExecutorClosedError(self._refusal)
            if takes_place:
                self._places -= 1  # type: ignore[operator]
            job.live.place = takes_place
            job.live.future = future
            if stored is not None:
                self.unwritten[job] = stored
            self.jobs[job.job_id] = job
            while job.dedupe_key is not None and job not in self._by_dedupe_key.get(job.dedupe_key, ()):
                self._by_dedupe_key.setdefault(job.dedupe_key, {})[job] = None  # Once more if others leave meanwhile.
            self.admitted += 1
            self.submitted.append(job)
            return future

    def holds(self, job: Job) -> bool:
        """Return whether the job is live here; the supervisor then accepts it before any later request."""
        with self._lock:  # Taking the lock waits for any submission in progress.
            return self.jobs.get(job.job_id) is job

    def all_held(self) -> list[Job]:
        """Return all live jobs, those of submissions in progress included."""
        with self._lock:
            return list(self.jobs.values())

    def running_of(self, tool_name: str) -> list[Job]:
        """Return the jobs of a tool that run, or are about to. Supervisor thread only."""
        return [
            job
            for job in self.all_held()
            if job.tool_name == tool_name
            and (job.live.assignment is not None or (job.live.driver and job.state.status is JobStatus.RUNNING))
        ]

    def refuse_if_closed(self) -> None:
        """Check that jobs are still admitted.

        Raises:
            ExecutorClosedError: they are not.
        """
        if self.closed:
            raise ExecutorClosedError(self._refusal)

    def _refuse_quarantined(self, job: Job) -> None:
        known = self.quarantined.get(job.job_id)
        if known is not None:
            crashes = known.state.crashes
            raise InvalidJobError(
                f"job {job.job_id} is quarantined after {crashes} crashes: release({job.job_id!r}) first"
            )

    def _refuse_known(self, job: Job) -> None:
        check_is_new(job)
        raise InvalidJobError(f"a job with the id {job.job_id!r} is live already: wait for it, or {NEW_ID_HINT}")

    def leave_queue(self, job: Job) -> None:
        """Free the place of a job that has started or ended."""
        if job.live.place:
            job.live.place = False
            self._give_place()

    def leave(self, job: Job) -> None:
        """Drop a job that has ended."""
        if job.live.place:
            self.leave_queue(job)
        self.jobs.pop(job.job_id, None)
        if job.dedupe_key is not None:
            twins = self._by_dedupe_key.pop(job.dedupe_key, {})
            twins.pop(job, None)  # Its key may have been set after it was submitted.
            if twins:
                self._by_dedupe_key.setdefault(job.dedupe_key, {}).update(twins)

    def close(self) -> None:
        """Admit no more jobs, and wake the callers that wait for a place."""
        with self._lock:
            self.closed = True
            self._place_free.notify_all()

    def detach_after_fork(self) -> None:
        """Admit no jobs in a forked process, and replace the lock, which another thread may have held."""
        self._lock = threading.RLock()
        self._place_free = threading.Condition(self._lock)
        self._refusal = "the executor was made in the process that this one was forked from: make another one here"
        self.closed = True

    def _wait_for_place(self, job: Job, timeout: float | None) -> None:
        """Return once there is a place, or none is needed; other jobs may have been admitted meanwhile."""
        ends = time.monotonic() + (float("inf") if timeout is None else timeout)
        while not (self._has_place() or self._needs_none(job)):
            left = ends - time.monotonic()
            if not self._may_wait():
                raise QueueFullError(
                    f"the queue holds {self._max_pending} of {self._max_pending} jobs, and an observer cannot wait for "
                    "a place: raise max_pending, or submit in another thread"
                )
            if left <= 0:
                held = self._max_pending
                raise QueueFullError(
                    f"the queue holds {held} of {held} jobs: raise max_pending, or wait longer for a place"
                )
            self._place_free.wait(min(left, RECHECK_INTERVAL))
        if self._needs_none(job):
            self._place_free.notify()  # If it was woken for a place, the next caller takes it.

    def _has_place(self) -> bool:
        return self._places is not None and self._places > 0

    def _needs_none(self, job: Job) -> bool:
        """Return whether the job will be refused anyway, or gets the future of its live twin."""
        known = self.twin(job) is not None or job.job_id in self.jobs or job.job_id in self.quarantined
        return self.closed or known or job.live.future is not None

    def _give_place(self) -> None:
        # After closing no caller wants a place, and a signal handler that waits for the end may hold the lock.
        while not self.closed:
            if self._lock.acquire(timeout=RECHECK_INTERVAL):
                self._places = (self._places or 0) + 1
                self._place_free.notify()
                self._lock.release()
                return
