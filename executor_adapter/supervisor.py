"""The supervisor: one thread that owns every job's state, and decides what happens next.

    submit ──► backlog ──► pool ──► ended ──► COMPLETED | FAILED | CANCELLED
                  ▲                   │
                  └───── RETRYING ◄───┘  retry.decide

Pools report to it, callers talk to it through its inbox; so there are no locks to get wrong. A job with a driver has
its retries decided elsewhere (Prefect's engine, an overridden `execute_job`): the supervisor grants it slots and runs
its attempts.
"""

from __future__ import annotations

import enum
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from executor_adapter.error_codes import error_code_of
from executor_adapter.exceptions import (
    ExecutorClosedError,
    InvalidJobError,
    JobCancelledError,
    JobTimeoutError,
    QueueFullError,
    SoftTimeoutError,
)
from executor_adapter.functions import function_key, is_coroutine_function
from executor_adapter.futures import Callbacks, JobFuture
from executor_adapter.job import TERMINAL, Job, JobStatus, Progress, Transition
from executor_adapter.loop import LoopTimer, SupervisorLoop
from executor_adapter.pools import POOL_NAMES, pool_kind
from executor_adapter.pools.base import Assignment, Ending, WorkerPool
from executor_adapter.queue import Backlog
from executor_adapter.retry import CRASHES, RetryDecision, decide

if TYPE_CHECKING:
    from executor_adapter.driver import JobDriver

logger = logging.getLogger("executor_adapter")

Observer = Callable[[Transition], None]
NEVER = float("inf")

SHORT_RUN = 0.002
"""Seconds: functions that take less on average may have others lie ready behind them."""


class StopReason(enum.Enum):
    """Why an attempt is being ended."""

    LIMIT = enum.auto()
    DEADLINE = enum.auto()
    CANCEL = enum.auto()


class Limits:
    """The times at which a running attempt is interrupted and ended; monotonic seconds, NEVER where there is none."""

    __slots__ = ("hard", "reason", "soft")

    def __init__(self) -> None:
        self.soft = NEVER
        self.hard = NEVER
        self.reason: StopReason | None = None


class Supervisor:
    """See the module. `make_pool` makes a pool when the first job asks for it."""

    def __init__(
        self,
        *,
        max_workers: int,
        make_pool: Callable[[str, Supervisor], WorkerPool],
        observers: Sequence[Observer] = (),
        max_pending: int | None = None,
        kill_grace: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_workers = max_workers
        self.kill_grace = kill_grace
        self.observers = list(observers)
        self.counts: dict[JobStatus, int] = dict.fromkeys(JobStatus, 0)
        self.retries = 0
        self.pools: dict[str, WorkerPool] = {}
        self.quarantined: dict[str, Job] = {}
        self.callbacks = Callbacks()
        self.closed = threading.Event()
        self.now = clock
        self._make_pool = make_pool
        self._loop = SupervisorLoop(clock)
        self._loop.before_sleep = self._before_sleep
        self._gate = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._places = max_pending
        self._max_pending = max_pending
        self._jobs: dict[str, Job] = {}
        self._by_dedupe_key: dict[str, Job] = {}
        self._submitted: deque[Job] = deque()
        self._backlog = Backlog()
        self._running: dict[Assignment, Limits | None] = {}
        self._limit_due = NEVER
        self._reserved = 0
        self._run_seconds: dict[Any, float] = {}
        self._exclusive: Assignment | None = None
        self._pools_open = 0

    # ------------------------------------------------------------------ from any thread

    def admit(self, job: Job, *, driver: JobDriver | None = None, timeout: float | None = None) -> JobFuture:
        """Take a job in: checked, prepared for its pool and queued.

        With `max_pending` reached it waits `timeout` seconds for a place (None: without end).

        Raises:
            InvalidJobError, JobSerializationError, QueueFullError, ExecutorClosedError
        """
        live = job._live
        if live.future is not None or live.status is not JobStatus.PENDING:
            raise InvalidJobError(f"job {job.job_id} was submitted already: submit a copy, job.model_copy()")
        if self._closing:
            raise ExecutorClosedError("the executor is shut down: submit before, or make another")
        live.pool = self._check(job)
        live.payload = pool_kind(live.pool).prepare(job)
        live.memory_limit = job.memory_limit
        with self._gate:
            return self._enter(job, driver, timeout)

    def _enter(self, job: Job, driver: JobDriver | None, timeout: float | None) -> JobFuture:
        if job.dedupe_key is not None and (twin := self._by_dedupe_key.get(job.dedupe_key)) is not None:
            future = twin._live.future
            if future is not None:
                return future
        self._take_place(timeout)
        if self._closing:
            raise ExecutorClosedError("the executor is shut down: submit before, or make another")
        if self._jobs.setdefault(job.job_id, job) is not job:
            self._give_place()
            raise InvalidJobError(f"a job with the id {job.job_id!r} is live already: ids must be unique")
        if job.dedupe_key is not None:
            self._by_dedupe_key[job.dedupe_key] = job
        live = job._live
        live.place, live.driver, live.queued_at = True, driver, self.now()
        live.future = future = JobFuture(job, self)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="executor-supervisor", daemon=True)
            self._thread.start()
        self._submitted.append(job)
        self._loop.wake()
        return future

    def _take_place(self, timeout: float | None) -> None:
        if self._places is None:
            return
        if not self._gate.wait_for(lambda: self._closing or bool(self._places), timeout):
            held = self._max_pending
            raise QueueFullError(f"the queue holds {held} of {held} jobs: raise max_pending, or wait with a timeout")
        self._places -= 1

    def _give_place(self) -> None:
        if self._places is not None:
            self._places += 1
            self._gate.notify()

    def cancel(self, job: Job) -> bool:
        """Ask for the job's end; False where it is over, or not this executor's."""
        if job.status in TERMINAL or self._jobs.get(job.job_id) is not job:
            return False
        self.call_soon(self._cancel, job)
        return True

    def find(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def live_jobs(self) -> list[Job]:
        return list(self._jobs.values())

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self._loop.call_soon(callback, *args)

    def deliver(self, callback: Callable[[Future[Any]], object], future: Future[Any]) -> None:
        """Run a future's callback: elsewhere, if this is the supervisor's thread."""
        if threading.current_thread() is self._thread:
            self.callbacks.call(functools.partial(callback, future))
        else:
            callback(future)

    def close(self, *, cancel_pending: bool, cancel_running: bool) -> None:
        """Take no more jobs; end once those there are over. Calling again with more to cancel hastens it."""
        with self._gate:
            self._closing = True
            self._gate.notify_all()
            if self._thread is None:
                self.closed.set()
                return
        self.call_soon(self._close, cancel_pending, cancel_running)

    # ------------------------------------------------------------------ the supervisor's thread

    def _run(self) -> None:
        try:
            self._loop.run()
        finally:
            self.callbacks.close()
            self.closed.set()

    def _before_sleep(self) -> float:
        submitted = self._submitted
        for _ in range(len(submitted)):
            self._accept(submitted.popleft())
        self._dispatch()
        for pool in self.pools.values():
            pool.flush()
        if self._limit_due <= self.now():
            self._apply_limits()
        return self._limit_due

    def _accept(self, job: Job) -> None:
        live = job._live
        self.counts[JobStatus.PENDING] += 1
        self._tell(job, None, JobStatus.PENDING)
        if job.queue_timeout is not None:
            self._set_timer(job, "queue", live.queued_at + job.queue_timeout, self._queue_timed_out)
        if job.deadline is not None:
            self._set_timer(job, "deadline", live.queued_at + job.deadline, self._deadline_passed)
        if live.driver is None:
            self._backlog.push(job)

    def enqueue(self, job: Job) -> None:
        """Let a driven job wait for its turn."""
        self._backlog.push(job)

    # --- starting ---

    def _dispatch(self) -> None:
        while self._backlog:
            job = self._backlog.peek()
            if not self._waits(job):
                self._backlog.pop()
                continue
            busy = self._reserved
            for pool in self.pools.values():
                busy += pool.busy
            if busy >= self.max_workers:
                if not self._start_behind(job):
                    return
            elif self._may_start(job, busy):
                self._backlog.pop()
                self._start(job)
            else:
                return

    @staticmethod
    def _waits(job: Job) -> bool:
        driver = job._live.driver
        return job._live.status not in TERMINAL and (driver is None or driver.wants_slot)

    def _may_start(self, job: Job, busy: int) -> bool:
        return self._exclusive is None and not (job._live.alone and busy)

    def _start(self, job: Job) -> None:
        live = job._live
        if live.driver is not None:
            self._reserved += 1
            live.attempt += 1
            self._leave_queue(job)
            self._advance(job, JobStatus.RUNNING)
            live.driver.slot_granted()
            return
        assignment = self._assign(job, live.attempt + 1)
        if live.alone:
            self._exclusive = assignment
        self._pool(live.pool).start(assignment)

    def _start_behind(self, job: Job) -> bool:
        """Lay the job ready behind a short one, if it is short itself."""
        live = job._live
        if (
            live.driver is not None
            or live.alone
            or self._run_seconds.get(function_key(job.function), NEVER) > SHORT_RUN
        ):
            return False
        pool = self.pools.get(live.pool)
        if pool is None or self._exclusive is not None:
            return False
        assignment = self._assign(job, live.attempt + 1)
        if not pool.start_behind(assignment):
            live.assignment = None
            return False
        self._backlog.pop()
        return True

    def start_driven(self, job: Job, prepare: Callable[[Assignment], None]) -> None:
        """Run one attempt of a driven job in the slot that it holds."""
        assignment = self._assign(job, job._live.attempt)
        prepare(assignment)
        self._reserved -= 1
        self._pool(job._live.pool).start(assignment)

    def _assign(self, job: Job, number: int) -> Assignment:
        live = job._live
        live.assignment = assignment = Assignment(job, number, live.payload)
        assignment.checkpoint = live.checkpoint
        assignment.memory_limit = live.memory_limit
        assignment.short = self._run_seconds.get(function_key(job.function), NEVER) <= SHORT_RUN
        return assignment

    def _pool(self, name: str) -> WorkerPool:
        pool = self.pools.get(name)
        if pool is None:
            pool = self.pools[name] = self._make_pool(name, self)
        return pool

    # --- what pools tell (pools.base.Supervisor) ---

    def started(self, assignment: Assignment, at: float) -> None:
        job = assignment.job
        live = job._live
        assignment.started_at = at
        if assignment not in self._running:  # else it is being stopped already
            self._running[assignment] = self._limits(job, at)
        if live.driver is None:
            live.attempt = assignment.number
            self._leave_queue(job)
            self._advance(job, JobStatus.RUNNING)

    def ended(
        self, assignment: Assignment, ending: Ending, value: Any = None, error: BaseException | None = None
    ) -> None:
        limits = self._forget(assignment)
        self._learn_run_time(assignment)
        if ending is Ending.RETURNED:
            self._record(assignment, None, None)
            self._succeeded(assignment.job, value)
            return
        if ending is Ending.STOPPED or ending is Ending.ABANDONED:
            error = self._stop_error(assignment.job, limits.reason if limits else None)
        elif isinstance(error, SoftTimeoutError):
            error = _with_cause(JobTimeoutError(f"ran longer than soft_timeout={assignment.job.soft_timeout} s"), error)
        assert error is not None
        code = error_code_of(error)
        self._record(assignment, error, code)
        self._failed(assignment.job, error, code)

    def handed_back(self, assignment: Assignment) -> None:
        self._forget(assignment)
        job = assignment.job
        live = job._live
        if live.driver is not None:
            # It holds its slot still: try again in another worker.
            self._pool(live.pool).start(self._again(assignment))
            return
        if live.status is JobStatus.RUNNING:
            live.attempt -= 1
            self._advance(job, JobStatus.PENDING)
        if live.status not in TERMINAL:
            self._backlog.push_front(job)

    def _again(self, assignment: Assignment) -> Assignment:
        again = self._assign(assignment.job, assignment.number)
        again.context, again.scope = assignment.context, assignment.scope
        return again

    def said(self, assignment: Assignment | None, topic: str, content: Any) -> None:
        if assignment is None:
            return
        live = assignment.job._live
        if topic == "progress":
            live.progress = Progress(*content)
        elif topic == "checkpoint":
            live.checkpoint = content
        if live.driver is not None:
            live.driver.said(topic, content)
        elif topic == "log" or topic == "output":
            self._log(assignment, topic, content)

    def watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        self._loop.watch(fd, on_readable)

    def watch_writable(self, fd: int, on_writable: Callable[[], None] | None) -> None:
        self._loop.watch_writable(fd, on_writable)

    def unwatch(self, fd: int) -> None:
        self._loop.unwatch(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> LoopTimer:
        return self._loop.call_at(when, callback)

    # --- ending ---

    def _succeeded(self, job: Job, value: Any) -> None:
        if job._live.driver is not None:
            job._live.driver.attempt_succeeded(value)
        else:
            self.finish(job, JobStatus.COMPLETED, value)

    def _failed(self, job: Job, error: BaseException, code: str) -> None:
        live = job._live
        if code in CRASHES:
            live.crashes += 1
        if live.driver is not None:
            live.driver.attempt_failed(error)
            return
        decision = self.decide(job, error, code)
        if decision.retry:
            self.retry_later(job, decision, self._backlog.push, error)
            return
        if decision.quarantine:
            self.quarantined[job.job_id] = job
        self.finish(job, JobStatus.CANCELLED if code == "CANCELLED" else JobStatus.FAILED, error=error)

    def decide(self, job: Job, error: BaseException, code: str) -> RetryDecision:
        retry_after = getattr(error, "retry_after", None)
        live = job._live
        return decide(job.policy, code=code, attempt=live.attempt, crashes=live.crashes, retry_after=retry_after)

    def retry_later(
        self, job: Job, decision: RetryDecision, when_due: Callable[[Job], None], error: BaseException | None = None
    ) -> None:
        """RETRYING now, without a slot; `when_due(job)` once the delay is over."""
        live = job._live
        self.retries += 1
        live.alone = decision.alone
        if live.memory_limit is not None:
            live.memory_limit = int(live.memory_limit * decision.memory_factor)
        live.retry_at = time.time() + decision.delay
        self._advance(job, JobStatus.RETRYING, error=error)
        self._set_timer(job, "retry", self.now() + decision.delay, functools.partial(self._retry_due, when_due))

    def _retry_due(self, when_due: Callable[[Job], None], job: Job) -> None:
        job._live.queued_at = self.now()
        when_due(job)

    def finish(self, job: Job, status: JobStatus, value: Any = None, error: BaseException | None = None) -> None:
        """The one place where a job reaches a terminal state."""
        live = job._live
        for timer in (live.timers or {}).values():
            timer.cancel()
        self._leave_queue(job)
        if live.driver is not None and live.driver.release_slot():
            self._reserved -= 1
        if isinstance(value, dict):
            live.records_processed = _records(value)
        self._advance(job, status, error=error)
        self._jobs.pop(job.job_id, None)
        if job.dedupe_key is not None:
            self._by_dedupe_key.pop(job.dedupe_key, None)
        # Let go of what only a live job needs; the future holds the job, so the job must not hold the future.
        future, live.future = live.future, None
        live.payload = live.assignment = live.timers = live.checkpoint = None
        assert future is not None
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
        if self._closing and not self._jobs:
            self._close_pools()

    def _cancel(self, job: Job) -> None:
        if job._live.status in TERMINAL:
            return
        self.end_early(job, StopReason.CANCEL)

    def end_early(self, job: Job, reason: StopReason) -> None:
        """End a live job for `reason`: at once where nothing of it runs, else once its attempt is dead."""
        live = job._live
        assignment: Assignment | None = live.assignment
        if assignment is not None and (assignment in self._running or not self._pool(live.pool).recall(assignment)):
            self._stop(assignment, reason)
            return
        self._end_unstarted(job, self._stop_error(job, reason))

    def _end_unstarted(self, job: Job, error: JobTimeoutError | JobCancelledError) -> None:
        live = job._live
        if live.driver is not None:
            live.driver.doom(error)
            return
        self.note_error(job, error)
        cancelled = isinstance(error, JobCancelledError)
        self.finish(job, JobStatus.CANCELLED if cancelled else JobStatus.FAILED, error=error)

    def _queue_timed_out(self, job: Job) -> None:
        live = job._live
        if live.status is not JobStatus.PENDING:
            return
        if live.assignment is not None and not self._pool(live.pool).recall(live.assignment):
            return  # it has begun
        message = f"not started within queue_timeout={job.queue_timeout} s: raise it, or max_workers"
        self._end_unstarted(job, JobTimeoutError(message, error_code="QUEUE_TIMEOUT"))

    def _deadline_passed(self, job: Job) -> None:
        self.end_early(job, StopReason.DEADLINE)

    @staticmethod
    def _stop_error(job: Job, reason: StopReason | None) -> JobTimeoutError | JobCancelledError:
        match reason:
            case StopReason.LIMIT:
                return JobTimeoutError(f"ran longer than max_runtime={job.max_runtime} s")
            case StopReason.DEADLINE:
                return JobTimeoutError(
                    f"not over within deadline={job.deadline} s of its submission", error_code="DEADLINE_EXCEEDED"
                )
            case StopReason.CANCEL | None:
                return JobCancelledError(f"job {job.job_id} was cancelled")

    # --- limits ---

    def _limits(self, job: Job, at: float) -> Limits | None:
        if job.max_runtime is None and job.soft_timeout is None:
            return None
        limits = Limits()
        if job.max_runtime is not None and (job._live.driver is None or job._live.driver.applies_max_runtime):
            limits.hard = at + job.max_runtime
        if job.soft_timeout is not None:
            limits.soft = at + job.soft_timeout
        self._limit_due = min(self._limit_due, limits.soft, limits.hard)
        return limits

    def _apply_limits(self) -> None:
        """Interrupt and stop what is past its limits, and find the next limit. Runs only when one may be due."""
        now = self.now()
        due = NEVER
        for assignment, limits in list(self._running.items()):
            if limits is None or limits.reason is not None:
                continue
            if limits.hard <= now:
                self._stop(assignment, StopReason.LIMIT)
                continue
            if limits.soft <= now:
                limits.soft = NEVER
                self._pool(assignment.job._live.pool).interrupt(assignment)
            due = min(due, limits.soft, limits.hard)
        self._limit_due = due

    def _stop(self, assignment: Assignment, reason: StopReason) -> None:
        limits = self._running.get(assignment)
        if limits is None:
            limits = self._running[assignment] = Limits()
        if limits.reason is None:
            limits.reason = reason
        if assignment.stop_asked_at is None:
            assignment.stop_asked_at = self.now()
        self._pool(assignment.job._live.pool).stop(assignment, grace=self.kill_grace)

    def stop_attempt(self, job: Job, reason: StopReason) -> None:
        """End what runs of a driven job, and leave the rest to its driver."""
        if job._live.assignment in self._running:
            self._stop(job._live.assignment, reason)

    # --- shutting down ---

    def _close(self, cancel_pending: bool, cancel_running: bool) -> None:
        for job in list(self._jobs.values()):
            running = job._live.status is JobStatus.RUNNING
            if cancel_running or (cancel_pending and not running):
                self.end_early(job, StopReason.CANCEL)
        if not self._jobs:
            self._close_pools()

    def _close_pools(self) -> None:
        if self._pools_open:
            return  # under way
        self._pools_open = len(self.pools) + 1
        for pool in self.pools.values():
            pool.close(self._pool_closed)
        self._pool_closed()

    def _pool_closed(self) -> None:
        self._pools_open -= 1
        if not self._pools_open:
            self._loop.stop()

    # --- bookkeeping ---

    def _check(self, job: Job) -> str:
        """The name of the pool that the job is to run in.

        Raises:
            InvalidJobError: it asks for what that pool cannot do.
        """
        name: str = job.pool
        if name == "auto":
            name = "coroutine" if is_coroutine_function(job.function) else "thread"
        if name not in POOL_NAMES:
            raise InvalidJobError(f"pool={name!r} is not available here: choose one of {', '.join(POOL_NAMES)}")
        kind = pool_kind(name)
        if job.memory_limit is not None and not kind.can_limit_memory:
            raise InvalidJobError(
                f"memory_limit needs a process of its own, and pool={name!r} has none: pool='process'"
            )
        if job.soft_timeout is not None:
            _check_soft_timeout(job, name, kind)
        return name

    def _advance(self, job: Job, status: JobStatus, *, error: BaseException | None = None) -> None:
        previous = job._live.status
        job.advance(status)
        self.counts[previous] -= 1
        self.counts[status] += 1
        self._tell(job, previous, status, error)

    def _tell(
        self, job: Job, previous: JobStatus | None, status: JobStatus, error: BaseException | None = None
    ) -> None:
        if not self.observers:
            return
        transition = Transition(
            job=job, previous=previous, status=status, at=time.time(), attempt=job._live.attempt, error=error
        )
        for observer in self.observers:
            try:
                observer(transition)
            except Exception:
                logger.exception("an observer failed", extra={"job_id": job.job_id})

    def _forget(self, assignment: Assignment) -> Limits | None:
        assignment.job._live.assignment = None
        if self._exclusive is assignment:
            self._exclusive = None
        return self._running.pop(assignment, None)

    def _leave_queue(self, job: Job) -> None:
        """The job no longer counts as pending."""
        if job._live.place:
            job._live.place = False
            if self._places is not None:
                with self._gate:
                    self._give_place()

    def _set_timer(self, job: Job, name: str, when: float, callback: Callable[[Job], None]) -> None:
        timers = job._live.timers
        if timers is None:
            timers = job._live.timers = {}
        timers[name] = self.call_at(when, functools.partial(callback, job))

    @staticmethod
    def note_error(job: Job, error: BaseException) -> None:
        job._live.error_code, job._live.error_message = error_code_of(error), str(error) or repr(error)

    def _record(self, assignment: Assignment, error: BaseException | None, code: str | None) -> None:
        live = assignment.job._live
        ended_at = assignment.ended_at or self.now()
        started_at = assignment.started_at or ended_at
        asked_at = assignment.stop_asked_at
        message = None if error is None else str(error) or repr(error)
        live.error_code, live.error_message = code, message
        record = (
            assignment.number,
            live.pool,
            assignment.pid,
            started_at - live.queued_at,
            ended_at - started_at,
            None if asked_at is None else ended_at - asked_at,
            assignment.peak_rss,
            assignment.exit_code,
            assignment.exit_signal,
            code,
            message,
        )
        live.attempts = (*(live.attempts or ()), record)
        live.queued_at = ended_at

    def _learn_run_time(self, assignment: Assignment) -> None:
        if assignment.started_at is None:
            return
        key = function_key(assignment.job.function)
        took = (assignment.ended_at or self.now()) - assignment.started_at
        known = self._run_seconds.get(key)
        if known is None and len(self._run_seconds) >= 1024:
            self._run_seconds.clear()
        self._run_seconds[key] = took if known is None else known + 0.3 * (took - known)

    @staticmethod
    def _log(assignment: Assignment, topic: str, content: Any) -> None:
        extra = {"job_id": assignment.job.job_id, "attempt": assignment.number}
        if topic == "log":
            log_as = logging.getLogger(content["name"])
            if log_as.isEnabledFor(content["level"]):
                log_as.log(content["level"], "%s", content["message"], extra=extra)
        else:
            logger.info("%s: %s", content[0], content[1], extra=extra)


def _check_soft_timeout(job: Job, name: str, kind: type[WorkerPool]) -> None:
    assert job.soft_timeout is not None
    if not kind.can_stop_soft:
        raise InvalidJobError(f"soft_timeout cannot be kept in pool={name!r}: choose 'thread' or 'process'")
    if job.max_runtime is not None and job.soft_timeout >= job.max_runtime:
        raise InvalidJobError(f"soft_timeout={job.soft_timeout} leaves no time before max_runtime={job.max_runtime}")


def _records(value: dict[Any, Any]) -> int | None:
    for key in ("records_collected", "records_processed"):
        count = value.get(key)
        if isinstance(count, int):
            return count
    return None


def _with_cause(error: JobTimeoutError, cause: BaseException) -> JobTimeoutError:
    error.__cause__ = cause
    return error
