"""Runs attempts through a subclass's `execute_job`, on an event loop of the executor's own.

    accepted ──► slot ──► execute_job, on the loop ──► COMPLETED | FAILED
                  ▲                  │
                  └──── RETRYING ◄───┘

Jobs wait in the supervisor: the loop holds only what runs. Where a job is to end early (deadline, cancel, shutdown),
its attempt in the pool is ended first, if there is one. Then `execute_job` gets a short time, is cancelled, and gets
another. If it still goes on it is abandoned, like a stuck thread; if it blocks its loop, the loop is abandoned too.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from executor_adapter.error_facts import ErrorFacts
from executor_adapter.exceptions import InvalidJobError, JobCancelledError
from executor_adapter.job import TERMINAL, Job, JobStatus
from executor_adapter.pools import COROUTINE_STOP_TIMEOUT, Assignment, EventLoopThread, Patience, unavailable
from executor_adapter.pools.transport.envelope import Body, Outcome, crashed
from executor_adapter.supervision import JobDriver, JobFuture, StopReason, Supervisor, failed_as

logger = logging.getLogger("executor_adapter.hooks")

ExecuteJob = Callable[[Job], Coroutine[Any, Any, Any]]


class HookedExecution:
    """Holds the event loop and the calls that run on it.

    `applies_max_runtime`: whether the supervisor ends attempts at `max_runtime`; otherwise `execute_job` decides. All
    methods but `submit` and `attempt` are for the supervisor's thread only.
    """

    def __init__(self, supervisor: Supervisor, *, applies_max_runtime: bool) -> None:
        self.abandoned = 0
        """The number of calls that could not be ended and were abandoned."""
        self._supervisor = supervisor
        self._applies_max_runtime = applies_max_runtime
        self._loop: _HookLoop | None = None
        supervisor.thread.on_closed.append(self._close)

    def submit(self, job: Job, execute_job: ExecuteJob, **how: Any) -> JobFuture:
        """Admit a job as `Supervisor.admit` does."""
        driver = HookedDriver(job, self._supervisor, self, execute_job, self._applies_max_runtime)
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
            await asyncio.wait([running])
            raise

    # --- on the supervisor's thread ---

    def begin_call(self, call: HookCall) -> None:
        """Run a call on the loop."""
        if self._loop is None or self._loop.has_failed:
            try:
                self._loop = _HookLoop(self._supervisor)
            except (OSError, RuntimeError) as error:  # No descriptor or thread is left.
                refusal = crashed(unavailable(error, "for execute_job"))
                self._supervisor.call_soon(call.driver.ended, call, refusal)
                return
        self._loop.submit(call)
        self._loop.start_submitted()

    def cancel_call(self, call: HookCall, *, grace: float) -> None:
        """Cancel the call; it is abandoned if it has not ended after `grace` seconds."""
        answered = threading.Event()
        call.worker.cancel(call, answered)
        Patience(self._supervisor, grace, functools.partial(self._abandon, call, answered))

    def discard_call(self, call: HookCall) -> None:
        """Drop a call that has ended or is abandoned."""
        loop: _HookLoop | None = call.worker
        if loop is None:  # It never began.
            return
        loop.discard(call)
        if loop is not self._loop and not loop.live:
            loop.stop()

    def _abandon(self, call: HookCall, answered: threading.Event) -> None:
        if not call.is_live:
            return
        self.abandoned += 1
        logger.error(
            "execute_job, or a hook, cannot be ended and is abandoned; its event loop is here:\n%s",
            call.worker.position(),
            extra={"job_id": call.driver.job.job_id},
        )
        if not answered.is_set() and call.worker is self._loop:
            self._replace(self._loop)
        call.driver.abandon_call()

    def _replace(self, blocked: _HookLoop) -> None:
        """Run all further calls on a new loop; only what has begun stays on the blocked one."""
        self._loop = _HookLoop(self._supervisor)
        blocked.move_unstarted(self._loop)
        self._loop.start_submitted()

    def _close(self) -> None:
        if self._loop is not None:
            self._loop.stop()


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
        self._supervisor = supervisor
        self._execution = execution
        self._execute_job: ExecuteJob | None = execute_job
        self._context = contextvars.copy_context()
        """The submitter's context, so that hooks see its context variables."""
        self.is_attempting = False
        """Written on the loop's thread; everything else on the supervisor's."""
        self.waits_for_worker = False  # `execute_job` may do much before its attempt, or have none.
        self._call: HookCall | None = None
        self._prepare: Callable[[Assignment], None] | None = None

    def accepted(self) -> None:
        self._acquire()

    def _acquire(self) -> None:
        if self._aborted is None:
            super()._acquire()

    def slot_granted(self) -> None:
        if self._call is None:
            assert self._execute_job is not None, "the job has not ended"
            self._call = HookCall(self, self._execute_job, self._context)
            self._execution.begin_call(self._call)
        elif self._prepare is not None:
            super()._attempt(self._prepare)

    def _attempt(self, prepare: Callable[[Assignment], None]) -> None:
        if self._holds_slot:
            super()._attempt(prepare)
        else:  # `execute_job` runs the function a second time.
            self._prepare = prepare
            self._acquire()

    def ended(self, call: HookCall, outcome: Outcome) -> None:
        """Note that `execute_job` has ended."""
        if not call.is_live:
            return  # It was abandoned.
        self._discard_call()
        if self._aborted is not None:  # The job was being ended, so the outcome of the call does not count.
            self._end(functools.partial(self._supervisor.follow_up.fail_job, self.job, self._aborted))
        elif outcome.error is None:
            self._end(functools.partial(self._supervisor.follow_up.finish_job, self.job, JobStatus.COMPLETED, outcome))
        else:
            self._failed(outcome, outcome.error)

    def _failed(self, outcome: Outcome, error: ErrorFacts) -> None:
        decision = self._supervisor.follow_up.decide(self.job, error)
        if decision.retry:
            self.job.record_error(error.code, error.text)  # A hook's error leaves no attempt that records it.
            self._supervisor.follow_up.retry_later(self.job, decision, lambda _: self.accepted(), error)
        else:
            status = failed_as(self.job, error)
            self._end(functools.partial(self._supervisor.follow_up.give_up, self.job, decision, outcome, status))

    # --- ending early ---

    def abort(self, outcome: Outcome) -> None:
        self.expect_end(outcome)
        self.wants_slot = False
        if self._call is None:
            # Later, not now: a supervisor that has failed aborts its jobs too, and ends them itself.
            self._supervisor.call_soon(self._end_aborted)
        elif self._outstanding is None:
            self._cancel_call(self._call)
        else:
            self.attempt_failed(outcome)

    def expect_end(self, outcome: Outcome) -> None:
        if self._aborted is None or _weight(outcome) > _weight(self._aborted):
            self._aborted = outcome

    def resolve(self, body: Body) -> None:
        super().resolve(body)
        self._on_attempt_ended()

    def _on_attempt_ended(self) -> None:
        """Let a call react to its end, for example in `error_hook`, and cancel it after a grace period."""
        if self._aborted is not None and self._call is not None:
            when = self._supervisor.now() + self._grace
            self._supervisor.call_at(when, functools.partial(self._cancel_call, self._call))

    def _cancel_call(self, call: HookCall) -> None:
        if call.is_live and not call.is_cancelled:
            call.is_cancelled = True
            self._execution.cancel_call(call, grace=self._grace)

    def abandon_call(self) -> None:
        """End the job although its call still runs."""
        self._discard_call()
        self._end_aborted()

    @property
    def _grace(self) -> float:
        return min(self._supervisor.stopping.kill_grace, COROUTINE_STOP_TIMEOUT)

    def _end_aborted(self) -> None:
        if self.job.status not in TERMINAL:
            assert self._aborted is not None, "the job is to end"
            self._end(functools.partial(self._supervisor.follow_up.fail_job, self.job, self._aborted))

    def _end(self, end: Callable[[], None]) -> None:
        end()
        self._execute_job = None  # Otherwise a finished job would keep its executor alive.

    def _discard_call(self) -> None:
        call, self._call = self._call, None
        assert call is not None, "a call runs"
        call.is_live = False
        self._execution.discard_call(call)


class HookCall:
    """One call of `execute_job`."""

    __slots__ = ("context", "driver", "execute_job", "is_cancelled", "is_live", "worker")

    def __init__(self, driver: HookedDriver, execute_job: ExecuteJob, context: contextvars.Context) -> None:
        self.driver = driver
        self.execute_job = execute_job
        self.context = context
        self.worker: Any = None
        self.is_live = True
        """Neither ended nor abandoned."""
        self.is_cancelled = False


class _HookLoop(EventLoopThread[HookCall]):
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        super().__init__("executor-hooks")

    async def call(self, run: HookCall) -> Any:
        return await run.execute_job(run.driver.job)

    def job_id_of(self, run: HookCall) -> str:
        return run.driver.job.job_id

    def on_end(self, run: HookCall, outcome: Outcome) -> None:
        self._supervisor.call_soon(run.driver.ended, run, outcome)


def _weight(outcome: Outcome) -> int:
    """Rank ends as StopReason does: a cancel outweighs a shutdown, and a shutdown outweighs a deadline."""
    if outcome.error is None or not outcome.error.is_a(JobCancelledError):
        return 0
    return 1 if outcome.error.shutdown else 2
