"""Runs attempts through a subclass's `execute_job`, on an event loop of the executor's own.

    accepted ──► slot ──► execute_job, on the loop ──► COMPLETED | FAILED
                  ▲                  │
                  └──── RETRYING ◄───┘

Jobs wait in the supervisor: the loop holds only what runs. Where a job is to end early (deadline, cancel, shutdown),
its attempt in the pool is ended first, if there is one. Then `execute_job` gets a short time, is cancelled, and gets
another. If it still goes on it is abandoned, like a stuck coroutine; if it blocks its loop, the loop is abandoned too.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

from executor_adapter.exceptions import ExecutorClosedError, InvalidJobError, JobCancelledError
from executor_adapter.job import TERMINAL, Job, JobStatus
from executor_adapter.pools.base import Assignment
from executor_adapter.pools.in_process.coroutine import COROUTINE_STOP_TIMEOUT
from executor_adapter.pools.kinds import pool_kind
from executor_adapter.pools.transport.envelope import Body, Outcome
from executor_adapter.supervision.driver import JobDriver
from executor_adapter.supervision.futures import JobFuture
from executor_adapter.supervision.outcome import StopReason
from executor_adapter.supervision.supervisor import Supervisor

ExecuteJob = Callable[[Job], Coroutine[Any, Any, Any]]


class HookedExecution:
    """Runs each call of `execute_job` as a coroutine in a pool of its own, which reports its end here.

    `executor` has the `execute_job`, and is held by its live jobs alone. `applies_max_runtime`: whether the supervisor
    ends attempts at `max_runtime`; otherwise `execute_job` decides. All methods but `admit` and `attempt` are for the
    supervisor's thread only.
    """

    def __init__(self, supervisor: Supervisor, executor: Any, applies_max_runtime: bool) -> None:
        self.now, self.call_at, self.call_soon = supervisor.now, supervisor.call_at, supervisor.call_soon
        self.on_message = supervisor.on_message
        self._supervisor = supervisor
        self._executor = weakref.ref(executor)
        self._applies_max_runtime = applies_max_runtime
        make_pool: Any = pool_kind("coroutine")
        self.calls = make_pool(self, 1)
        """The pool of the calls. How many there are at once is decided by the slots of their jobs."""
        supervisor.futures.lenders.append(self)
        supervisor.thread.on_closed.append(lambda: self.calls.close(lambda: None))

    def admit(self, job: Job, **how: Any) -> JobFuture:
        """Admit a job as `Supervisor.admit` does; a recovered one not once nobody holds the executor any more."""
        if (executor := self._executor()) is None:
            raise ExecutorClosedError("the executor was dropped: hold it for as long as it is to run jobs")
        driver = HookedDriver(job, self._supervisor, self, executor.execute_job, self._applies_max_runtime)
        return self._supervisor.admit(job, driver=driver, **how)

    async def attempt(self, job: Job) -> Any:
        """Run one attempt in the job's pool; cancelling it returns when the work is dead or abandoned.

        Raises:
            JobCancelledError: the job is not running.
            InvalidJobError: The job already has a running attempt.
        """
        driver = job.live.driver
        if not isinstance(driver, HookedDriver) or job.status in TERMINAL:
            raise JobCancelledError(f"job {job.job_id} is not running: submit it")
        if driver.is_attempting:
            raise InvalidJobError(f"job {job.job_id} already has a running attempt: await that first")
        driver.is_attempting = True
        try:
            return await self._attempt(driver)
        finally:
            driver.is_attempting = False

    async def _attempt(self, driver: HookedDriver) -> Any:
        running = asyncio.wrap_future(driver.attempt())
        running.add_done_callback(lambda over: over.exception())  # asyncio logs exceptions that are never retrieved.
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            driver.stop_attempt(StopReason.LIMIT)
            while not running.done():  # Whatever is cancelled meanwhile: a retry must not start beside it.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            raise

    # --- reports of the pool ---

    def started(self, call: Assignment, at: float) -> None:
        """Do nothing: the job is RUNNING since it got its slot."""

    def ended(self, call: Assignment, outcome: Outcome) -> None:
        """Note that `execute_job` has ended, or is abandoned."""
        call.payload = None  # Otherwise a context that outlives the call would keep the executor alive.
        call.job.live.driver.ended(outcome)

    def lend_slot(self, call: Assignment, blocks: bool) -> None:
        """Free the slot of a job while its hook waits for another job, unless the job's attempt has it."""
        if call.job.live.driver.may_begin:
            self._supervisor.dispatcher.lend(call.job)
        if blocks:
            self.calls.on_blocked(call)

    def take_slot_back(self, call: Assignment) -> None:
        """Take back a slot that was lent, unless the job's attempt has it by now: that may lend it itself."""
        if call.job.live.assignment is None:
            self._supervisor.dispatcher.take_back(call.job)


class HookedDriver(JobDriver):
    """Drives a job of which each attempt is one call of `execute_job`."""

    def __init__(
        self,
        job: Job,
        supervisor: Supervisor,
        execution: HookedExecution,
        execute_job: ExecuteJob,
        applies_max_runtime: bool,
    ) -> None:
        super().__init__(job, supervisor, applies_max_runtime=applies_max_runtime)
        self._execution = execution
        self._execute_job: ExecuteJob | None = execute_job
        self._context = contextvars.copy_context()
        """The submitter's context, so that hooks see its context variables."""
        self.is_attempting = False
        """Written on the loop's thread; everything else on the supervisor's."""
        self.waits_for_worker = False  # `execute_job` may do much before its attempt, or have none.
        self._call: Assignment | None = None
        self._prepare: Callable[[Assignment], None] | None = None

    def accepted(self) -> None:
        self._acquire()

    def slot_granted(self) -> None:
        if self._call is None:
            assert self._execute_job is not None, "the job has not ended"
            call = functools.partial(self._execute_job, self.job)
            self._call = Assignment(self.job, self.job.state.attempt, call, context=self._context)
            self._execution.calls.start(self._call)
            self._execution.calls.flush()
        elif self._prepare is not None:
            super()._attempt(self._prepare)
        else:
            self.resolve(Body())

    def stop_attempt(self, reason: StopReason) -> None:
        super().stop_attempt(reason)
        # A run that waits for a slot does not start. The slot is kept for the next one.
        self._supervisor.call_soon(setattr, self, "_prepare", None)

    def _attempt(self, prepare: Callable[[Assignment], None]) -> None:
        if self._holds_slot:
            super()._attempt(prepare)
        else:  # `execute_job` runs the function a second time.
            self._prepare = prepare
            self._acquire()

    def ended(self, outcome: Outcome) -> None:
        """Note that `execute_job` has ended."""
        self._call = None
        if self._aborted is not None:  # The job was being ended, so the outcome of the call does not count.
            self._end_aborted()
        elif outcome.error is None:
            self._end(self._supervisor.follow_up.finish_job, JobStatus.COMPLETED, outcome)
        else:
            self._end(self._supervisor.follow_up.retry_or_end, outcome, outcome.error)

    # --- ending early ---

    def abort(self, outcome: Outcome) -> None:
        self.expect_end(outcome)
        # Later, not now: a supervisor that has failed aborts its jobs too, and ends them itself.
        if self._call is None:
            self._supervisor.call_soon(self._end_aborted)
        elif self._outstanding is None:
            self._supervisor.call_soon(self._cancel_call)
        else:
            self.attempt_failed(outcome)

    def expect_end(self, outcome: Outcome) -> None:
        if self._aborted is None or _weight(outcome) > _weight(self._aborted):
            self._aborted = outcome

    def resolve(self, body: Body) -> None:
        super().resolve(body)
        if self._aborted is not None and self._call is not None:
            # The call may react to its end, for example in `error_hook`, and is cancelled after a grace period.
            grace = min(self._supervisor.stopping.kill_grace, COROUTINE_STOP_TIMEOUT)
            self._supervisor.call_at(self._supervisor.now() + grace, self._cancel_call)

    def _cancel_call(self) -> None:
        if self._call is not None:
            self._execution.calls.stop(self._call, grace=self._supervisor.stopping.kill_grace)

    def _end_aborted(self) -> None:
        if self.job.status not in TERMINAL:
            assert self._aborted is not None, "the job is to end"
            self._end(self._supervisor.follow_up.fail_job, self._aborted)

    def _end(self, end: Callable[..., None], *how: Any) -> None:
        end(self.job, *how)
        if self.job.status in TERMINAL:
            self._execute_job = None  # Otherwise a finished job would keep its executor alive.


def _weight(outcome: Outcome) -> int:
    """Rank ends as StopReason does: a cancel outweighs a shutdown, and a shutdown outweighs a deadline."""
    if outcome.error is None or not outcome.error.is_a(JobCancelledError):
        return 0
    return 1 if outcome.error.shutdown else 2
