"""The coroutine pool: runs coroutines on one event loop in a thread of its own, for jobs that wait for the network.

At its limit a coroutine is cancelled. A coroutine that has not started then never does, and one that had ended before
is reported as it ended. One that ignores the cancellation is abandoned after its grace period. A coroutine that blocks
the loop, with `time.sleep` for example, holds up all others. If the loop does not answer within the grace period it is
abandoned too. A new loop gets later jobs and those that had not started. What had started on the old loop continues
when it can, or ends at its own limit.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import Job, is_coroutine_function
from executor_adapter.pools.base import Assignment, PoolSupervisor, Recall, StartingPool
from executor_adapter.pools.in_process.call import bind, job_context, open_scope, report_abandoned
from executor_adapter.pools.in_process.event_loop import COROUTINE_STOP_TIMEOUT, EventLoopThread
from executor_adapter.pools.in_process.slot_loan import SlotLoan, current_slot_loan
from executor_adapter.pools.patience import Patience
from executor_adapter.pools.transport.envelope import STOPPED, Outcome
from executor_adapter.worker import enter_job, position_text


class CoroutinePool(StartingPool["_Loop"]):
    """Runs at most max_workers coroutines at once, each of which holds a slot."""

    name: ClassVar[str] = "coroutine"

    def __init__(self, supervisor: PoolSupervisor, max_workers: int) -> None:
        super().__init__(supervisor, max_workers)
        self.abandoned = 0
        """Coroutines that could not be stopped."""
        self.loop: _Loop | None = None
        """The loop that runs new assignments."""

    @classmethod
    def prepare(cls, job: Job) -> Callable[[], Any]:
        if not is_coroutine_function(job.function):
            raise InvalidJobError(f"{job.function!r} is not a coroutine function: choose pool='thread' or 'process'")
        return bind(job)

    def get_worker(self, assignment: Assignment) -> _Loop:
        if self.loop is None or self.loop.has_failed:
            self.loop = _Loop(self)
        return self.loop

    def use(self, worker: _Loop, assignment: Assignment) -> None:
        worker.submit(assignment)
        self.supervisor.started(assignment, self.supervisor.now())

    def recall(self, assignment: Assignment) -> Recall:
        return Recall.STARTED if assignment.worker is not None else self.recall_waiting(assignment)

    def flush(self) -> None:
        if self.loop is not None and self.loop.submitted:
            self.loop.start_submitted()

    def on_blocked(self, assignment: Assignment) -> None:
        self._replace(assignment.worker)

    def _replace(self, blocked: _Loop) -> None:
        """Run later jobs, and what this loop has not started, on another loop."""
        if blocked is self.loop:
            self.loop = None  # Set before a new loop is made, which may fail for lack of descriptors.
            self.loop = _Loop(self)
            blocked.move_unstarted(self.loop)
            if not blocked.live:  # What blocks it is no job, so no job's end stops it.
                blocked.stop()

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        loop: _Loop | None = assignment.worker
        if loop is None:
            self.end_waiting(assignment)
        elif assignment.ended_at is not None:
            assignment.stop_asked_at = None  # It ended before, and its report is on its way.
        elif assignment not in loop.stopping:
            answered = threading.Event()
            loop.cancel(assignment, answered)
            give_up = functools.partial(self._give_up, loop, assignment, answered)
            Patience(self.supervisor, min(grace, COROUTINE_STOP_TIMEOUT), give_up)
            if loop.claim(assignment):
                self._discard(loop, assignment)
                self.supervisor.ended(assignment, STOPPED)

    def _give_up(self, loop: _Loop, assignment: Assignment, answered: threading.Event) -> None:
        try:
            if not answered.is_set():
                self._replace(loop)
        finally:
            self.abandon(loop, assignment)

    def close(self, on_closed: Callable[[], None]) -> None:
        if self.loop is not None:
            self.loop.stop()
            self.loop = None  # Found blocked from now on, it gets no successor, which nobody would stop.
        on_closed()

    # --- reports of the loop, on the supervisor's thread ---

    def on_finished(self, loop: _Loop, assignment: Assignment, outcome: Outcome) -> None:
        """Report the end of a coroutine, unless it was abandoned."""
        if assignment not in loop.live:
            return
        if assignment in loop.stopping:
            outcome = STOPPED
        self._discard(loop, assignment)
        self.supervisor.ended(assignment, outcome)

    def _discard(self, loop: _Loop, assignment: Assignment) -> None:
        """Free the slot of an assignment, and stop its loop if that is an old one without others."""
        self.busy -= 1
        loop.discard(assignment)
        if loop is not self.loop and not loop.live:
            loop.stop()

    def abandon(self, loop: _Loop, assignment: Assignment) -> None:
        if assignment not in loop.live or assignment.ended_at is not None:
            return  # It has ended, although its report may not have arrived yet.
        assignment.position = assignment.position or loop.position()
        self._discard(loop, assignment)
        self.abandoned += 1
        report_abandoned(assignment, self, assignment.position)


class _Loop(EventLoopThread[Assignment]):
    """The loop that the pool's assignments run on."""

    def __init__(self, pool: CoroutinePool) -> None:
        self._pool = pool
        super().__init__("executor-coroutines")

    async def call(self, run: Assignment) -> Any:
        run.started_at = time.monotonic()
        # A task has a context of its own, so there is no need for `leave_job`.
        enter_job(job_context(run, self._pool.supervisor, lambda: run in self.stopping))
        current_slot_loan.set(SlotLoan(self._pool.supervisor, run))
        coroutine: Coroutine[Any, Any, Any] = run.payload()
        if run.scope is None:
            return await coroutine
        with open_scope(run.job, run.scope):
            return await coroutine

    def on_cancel(self, run: Assignment, coroutine: Any) -> None:
        run.position = position_text(None, coroutine)

    def job_id_of(self, run: Assignment) -> str:
        return run.job.job_id

    def on_end(self, run: Assignment, outcome: Outcome) -> None:
        run.ended_at = time.monotonic()
        # A CancelledError is an error like any other, if the pool did not cancel the coroutine.
        self._pool.supervisor.call_soon(self._pool.on_finished, self, run, outcome)
