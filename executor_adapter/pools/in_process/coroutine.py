"""Coroutines on one event loop, in a thread of its own: for jobs that wait for the network.

At its limit a coroutine is cancelled; what has not begun then never does, and what had ended before is reported as it
ended. One that swallows the cancellation is written off after its grace. One that blocks the loop, with a `time.sleep`
say, holds up all others of it: once the loop does not do as it is asked it is written off too, and a new one has what
comes and what had not begun; what waits on the old one goes on when it can, or ends at its own limit.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.exceptions.display import check_display
from executor_adapter.job.functions import is_coroutine_function
from executor_adapter.job.model import Job
from executor_adapter.pools.base import Assignment, Ending, PoolSupervisor, WorkerPool
from executor_adapter.pools.in_process.call import bind, job_context, open_scope
from executor_adapter.pools.in_process.event_loop import COROUTINE_STOP_TIMEOUT, EventLoopThread
from executor_adapter.worker.context import enter_job

logger = logging.getLogger("executor_adapter.coroutine")


class CoroutinePool(WorkerPool):
    """At most max_workers coroutines at once, each holding a slot."""

    name: ClassVar[str] = "coroutine"

    def __init__(self, supervisor: PoolSupervisor, max_workers: int) -> None:
        super().__init__(supervisor, max_workers)
        self.abandoned = 0
        self._loop: _Loop | None = None

    @classmethod
    def prepare(cls, job: Job) -> Callable[[], Any]:
        if not is_coroutine_function(job.function):
            raise InvalidJobError(f"{job.function!r} is no coroutine function: choose pool='thread' or 'process'")
        return bind(job)

    def start(self, assignment: Assignment) -> None:
        if self._loop is None:
            self._loop = _Loop(self)
        self.busy += 1
        self._loop.submit(assignment)
        self.supervisor.started(assignment, self.supervisor.now())

    def flush(self) -> None:
        if self._loop is not None and self._loop.submitted:
            self._loop.start_submitted()

    def on_blocked(self, assignment: Assignment) -> None:
        self._replace(assignment.worker)

    def _replace(self, blocked: _Loop) -> None:
        """Let what comes, and what this loop has not begun, run on another."""
        if blocked is self._loop:
            self._loop = None  # also where there is no descriptor left for another
            self._loop = _Loop(self)
            blocked.move_unstarted(self._loop)

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        loop: _Loop = assignment.worker
        if assignment.ended_at is not None:
            assignment.stop_asked_at = None  # too late: how it ended is on its way
        elif assignment not in loop.stopping:
            self._cancel(loop, assignment, self.supervisor.now() + min(grace, COROUTINE_STOP_TIMEOUT))
            if loop.claim(assignment):
                self._part_with(loop, assignment)
                self.supervisor.ended(assignment, Ending.STOPPED)

    def _cancel(self, loop: _Loop, assignment: Assignment, patience: float) -> None:
        answered = threading.Event()
        loop.cancel(assignment, answered)
        self.supervisor.call_at(patience, lambda: None if answered.is_set() else self._replace(loop))
        self.supervisor.call_at(patience, functools.partial(self._abandon, loop, assignment))

    def close(self, on_closed: Callable[[], None]) -> None:
        if self._loop is not None:
            self._loop.stop()
        on_closed()

    # --- what the loop reports, on the supervisor's thread ---

    def finished(
        self, loop: _Loop, assignment: Assignment, ending: Ending, value: Any, error: BaseException | None
    ) -> None:
        if assignment not in loop.live:
            return  # written off
        if assignment in loop.stopping:
            ending = Ending.STOPPED
        self._part_with(loop, assignment)
        self.supervisor.ended(assignment, ending, value, error)

    def _part_with(self, loop: _Loop, assignment: Assignment) -> None:
        self.busy -= 1
        loop.discard(assignment)
        if loop is not self._loop and not loop.live:
            loop.stop()

    def _abandon(self, loop: _Loop, assignment: Assignment) -> None:
        if assignment not in loop.live or assignment.ended_at is not None:
            return  # it has told so, though we may not have heard it yet
        self.abandoned += 1
        logger.error(
            "a coroutine cannot be stopped and is written off; its event loop is here:\n%s",
            loop.stack(),
            extra={"job_id": assignment.job.job_id},
        )
        self._part_with(loop, assignment)
        assignment.ended_at = self.supervisor.now()
        self.supervisor.ended(assignment, Ending.ABANDONED)


class _Loop(EventLoopThread[Assignment]):
    """The loop that the pool's assignments run on."""

    def __init__(self, pool: CoroutinePool) -> None:
        self._pool = pool
        super().__init__("executor-coroutines")

    async def call(self, run: Assignment) -> Any:
        run.started_at = time.monotonic()
        # A task has a context of its own: nothing to leave afterwards.
        enter_job(job_context(run, self._pool.supervisor, lambda: run in self.stopping))
        coroutine: Coroutine[Any, Any, Any] = run.payload()
        try:
            if run.scope is None:
                return await coroutine
            with open_scope(run):
                return await coroutine
        except BaseException as error:
            check_display(error)
            raise

    def on_end(self, run: Assignment, value: Any, error: BaseException | None) -> None:
        run.ended_at = time.monotonic()
        # A CancelledError too: cancelled by itself, not by us, it is an error like any other.
        ending = Ending.RETURNED if error is None else Ending.RAISED
        self._pool.supervisor.call_soon(self._pool.finished, self, run, ending, value, error)
