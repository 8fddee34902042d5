"""Attempts that pass through a subclass's `execute_job`: on an event loop of the executor's own.

    accepted ──► slot ──► execute_job, on the loop ──► COMPLETED | FAILED
                  ▲                  │
                  └──── RETRYING ◄───┘

Waiting is the supervisor's: the loop has what runs, and nothing else. A job that is to end early (deadline, cancel,
shutdown) has its attempt in the pool ended first, if there is one; then `execute_job` has a moment, is cancelled, and
has another. If it goes on all the same it is written off, as a stuck thread is, and if it blocks its loop, so is that.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from executor_adapter.exceptions import InvalidJobError, JobCancelledError
from executor_adapter.job.model import Job
from executor_adapter.job.status import TERMINAL, JobStatus
from executor_adapter.pools.in_process.event_loop import COROUTINE_STOP_TIMEOUT, EventLoopThread
from executor_adapter.supervision.driver import JobDriver
from executor_adapter.supervision.futures import JobFuture
from executor_adapter.supervision.outcome import code_and_message, failed_as
from executor_adapter.supervision.running_attempts import StopReason

if TYPE_CHECKING:
    from executor_adapter.pools.base import Assignment
    from executor_adapter.supervision.supervisor import Supervisor

logger = logging.getLogger("executor_adapter.hooks")

ExecuteJob = Callable[[Job], Coroutine[Any, Any, Any]]


class HookedExecution:
    """The loop, and what runs on it.

    `applies_max_runtime`: whether the supervisor ends attempts at max_runtime; else `execute_job` does as it likes. All
    but `submit` and `attempt` belongs to the supervisor's thread.
    """

    def __init__(self, supervisor: Supervisor, *, applies_max_runtime: bool) -> None:
        self.abandoned = 0
        """Calls that could not be ended, and were written off."""
        self._supervisor = supervisor
        self._applies_max_runtime = applies_max_runtime
        self._loop: _Loop | None = None
        supervisor.on_closed.append(self._close)

    def submit(self, job: Job, execute_job: ExecuteJob, **how: Any) -> JobFuture:
        """Take a job in as `Supervisor.admit` does."""
        driver = HookedDriver(job, self._supervisor, self, execute_job, self._applies_max_runtime)
        return self._supervisor.admit(job, driver=driver, **how)

    async def attempt(self, job: Job) -> Any:
        """One attempt in the job's pool; cancelling it returns when the work is dead or written off.

        Raises:
            JobCancelledError: the job is not running, or no more.
            InvalidJobError: an attempt of it runs already.
        """
        driver = job.live.driver
        if not isinstance(driver, HookedDriver) or job.status in TERMINAL:
            raise JobCancelledError(f"job {job.job_id} is not running: submit it")
        if driver.is_attempting:
            raise InvalidJobError(f"an attempt of job {job.job_id} runs already: await that one first")
        driver.is_attempting = True
        try:
            return await self._attempt(driver)
        finally:
            driver.is_attempting = False

    async def _attempt(self, driver: HookedDriver) -> Any:
        running = asyncio.wrap_future(driver.attempt())
        running.add_done_callback(lambda over: over.exception())  # looked at: asyncio logs it where nobody does
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            driver.stop_attempt(StopReason.LIMIT)
            await asyncio.wait([running])
            raise

    # --- on the supervisor's thread ---

    def begin(self, call: Call) -> None:
        if self._loop is None:
            self._loop = _Loop(self._supervisor)
        self._loop.submit(call)
        self._loop.start_submitted()

    def cancel(self, call: Call, *, grace: float) -> None:
        """End the call; it is written off if it is not over after `grace` seconds."""
        answered = threading.Event()
        call.worker.cancel(call, answered)
        when = self._supervisor.now() + grace
        self._supervisor.call_at(when, functools.partial(self._abandon, call, answered))

    def part_with(self, call: Call) -> None:
        """The call is over, or written off."""
        loop = call.worker
        loop.discard(call)
        if loop is not self._loop and not loop.live:
            loop.stop()

    def _abandon(self, call: Call, answered: threading.Event) -> None:
        if not call.is_live:
            return
        self.abandoned += 1
        logger.error(
            "execute_job, or a hook, cannot be ended and is written off; its event loop is here:\n%s",
            call.worker.stack(),
            extra={"job_id": call.driver.job.job_id},
        )
        if not answered.is_set() and call.worker is self._loop:
            self._replace(self._loop)
        call.driver.written_off()

    def _replace(self, blocked: _Loop) -> None:
        """Nothing further runs on this loop but what has begun there, should it ever go on."""
        self._loop = _Loop(self._supervisor)
        blocked.move_unstarted(self._loop)
        self._loop.start_submitted()

    def _close(self) -> None:
        if self._loop is not None:
            self._loop.stop()


class HookedDriver(JobDriver):
    """A job of which each attempt is one call of `execute_job`."""

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
        """The submitter's: hooks see its context variables."""
        self.is_attempting = False
        """Kept by the loop's thread; all else belongs to the supervisor's."""
        self._call: Call | None = None
        self._prepare: Callable[[Assignment], None] | None = None

    def accepted(self) -> None:
        self._acquire()

    def _acquire(self) -> None:
        if self._doom is None:
            super()._acquire()

    def slot_granted(self) -> None:
        self.wants_slot = False
        self._holds_slot = True
        if self._call is None:
            assert self._execute_job is not None, "the job is not over"
            self._call = Call(self, self._execute_job, self._context)
            self._execution.begin(self._call)
        elif self._prepare is not None:
            super()._attempt(self._prepare)

    def _attempt(self, prepare: Callable[[Assignment], None]) -> None:
        if self._holds_slot:
            super()._attempt(prepare)
        else:  # `execute_job` has the function run a second time
            self._prepare = prepare
            self._acquire()

    def returned(self, call: Call, value: Any, error: BaseException | None) -> None:
        """`execute_job` is over."""
        if not call.is_live:
            return  # written off
        self._part_with_call()
        if self._doom is not None:  # it was to end, and that is how: whatever it made of that
            self._end(functools.partial(self._supervisor.fail, self.job, self._doom))
        elif error is None:
            self._end(functools.partial(self._supervisor.finish, self.job, JobStatus.COMPLETED, value))
        else:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        decision = self.decide(error)
        if decision.retry and isinstance(error, Exception):
            self.job.record_error(*code_and_message(error))  # a hook's own leaves no attempt that would tell
            self._supervisor.retry_later(self.job, decision, lambda _: self.accepted(), error)
        else:
            status = failed_as(self.job, error)
            self._end(functools.partial(self._supervisor.give_up, self.job, decision, error, status))

    # --- ending early ---

    def doom(self, error: BaseException) -> None:
        self.stopping(error)
        self.wants_slot = False
        if self._call is None:
            # Soon, and not now: a supervisor that has failed dooms its jobs too, and ends them itself.
            self._supervisor.call_soon(self._end_doomed)
        elif self._outstanding is None:
            self._cancel_call(self._call)
        else:
            self.attempt_failed(error)

    def stopping(self, error: BaseException) -> None:
        if self._doom is None or _weight(error) > _weight(self._doom):
            self._doom = error

    def attempt_failed(self, error: BaseException) -> None:
        super().attempt_failed(error)
        self._attempt_over()

    def resolve(self, value: Any) -> None:
        super().resolve(value)
        self._attempt_over()

    def _attempt_over(self) -> None:
        """What is left of a call that is to end is what it makes of that: `error_hook`, for example."""
        if self._doom is not None and self._call is not None:
            when = self._supervisor.now() + self._grace
            self._supervisor.call_at(when, functools.partial(self._cancel_call, self._call))

    def _cancel_call(self, call: Call) -> None:
        if call.is_live and not call.is_cancelled:
            call.is_cancelled = True
            self._execution.cancel(call, grace=self._grace)

    def written_off(self) -> None:
        """The call goes on, and nobody waits for it any more."""
        self._part_with_call()
        self._end_doomed()

    @property
    def _grace(self) -> float:
        return min(self._supervisor.kill_grace, COROUTINE_STOP_TIMEOUT)

    def _end_doomed(self) -> None:
        if self.job.status not in TERMINAL:
            assert self._doom is not None, "only what is to end is ended so"
            self._end(functools.partial(self._supervisor.fail, self.job, self._doom))

    def _end(self, end: Callable[[], None]) -> None:
        end()
        self._execute_job = None  # else a job that is over would hold its executor

    def _part_with_call(self) -> None:
        call, self._call = self._call, None
        assert call is not None, "there is one"
        call.is_live = False
        self._execution.part_with(call)


class Call:
    """One call of `execute_job`."""

    __slots__ = ("context", "driver", "execute_job", "is_cancelled", "is_live", "worker")

    def __init__(self, driver: HookedDriver, execute_job: ExecuteJob, context: contextvars.Context) -> None:
        self.driver = driver
        self.execute_job = execute_job
        self.context = context
        self.worker: Any = None
        self.is_live = True
        """Neither over nor written off."""
        self.is_cancelled = False


class _Loop(EventLoopThread[Call]):
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        super().__init__("executor-hooks")

    async def call(self, run: Call) -> Any:
        return await run.execute_job(run.driver.job)

    def on_end(self, run: Call, value: Any, error: BaseException | None) -> None:
        self._supervisor.call_soon(run.driver.returned, run, value, error)


def _weight(error: BaseException) -> int:
    """As of StopReason: what was cancelled is so, also if it is past its deadline or its executor lets go of it."""
    if not isinstance(error, JobCancelledError):
        return 0
    return 1 if error.context.get("let_go") else 2
