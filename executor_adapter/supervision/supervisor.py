"""The supervisor: one thread that owns every job's state, and decides what happens next.

    submit ──► backlog ──► pool ──► ended ──► COMPLETED | FAILED | CANCELLED
                  ▲                   │
                  └───── RETRYING ◄───┘  retry.decide

Pools report to it, callers talk to it through its inbox; so there are no locks to get wrong. A job with a driver has
its retries decided elsewhere (Prefect's engine, an overridden `execute_job`): the supervisor grants it slots and runs
its attempts.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from executor_adapter.error_codes import error_code_of, retry_after_of
from executor_adapter.exceptions import (
    JobCancelledError,
    JobError,
    JobTimeoutError,
    SoftTimeoutError,
    WorkerCrashedError,
)
from executor_adapter.exceptions.display import as_exception, repr_of, traceback_text
from executor_adapter.job.functions import check_arguments
from executor_adapter.job.model import Job
from executor_adapter.job.results import Progress
from executor_adapter.job.retry import RetryDecision, decide
from executor_adapter.job.status import TERMINAL, JobStatus
from executor_adapter.job.transition import Observer
from executor_adapter.pools import PoolKinds
from executor_adapter.pools.base import Assignment, Ending, WorkerPool
from executor_adapter.supervision.dispatcher import Dispatcher
from executor_adapter.supervision.futures import Callbacks, JobFuture
from executor_adapter.supervision.intake import JobIntake, check_job
from executor_adapter.supervision.job_scope import JobScope
from executor_adapter.supervision.loop import LoopTimer, SupervisorLoop
from executor_adapter.supervision.outcome import (
    code_and_message,
    failed_as,
    is_end_of,
    queue_timeout_error,
    record_attempt,
    records_in,
    soft_timeout_error,
    stop_error,
)
from executor_adapter.supervision.pool_set import PoolSet
from executor_adapter.supervision.rate_limiter import Throttle, ToolLimit
from executor_adapter.supervision.running_attempts import SHORT_RUN, RunningAttempts, RunTimes, StopReason
from executor_adapter.supervision.state_tracker import StateTracker
from executor_adapter.supervision.worker_logs import log_said

if TYPE_CHECKING:
    from executor_adapter.supervision.driver import JobDriver

logger = logging.getLogger("executor_adapter")

CANCEL_GRACE = 3.0
"""Seconds that a cancelled attempt gets at most: within five all is to be over, the kill included."""

CAUGHT_UP_SECONDS = 0.05
"""Between two looks whether the supervisor that is to catch up is over."""


class Supervisor:
    """See the module. `make_pool` makes a pool when the first job asks for it, of the class that `kind_of` gives."""

    def __init__(
        self,
        *,
        max_workers: int,
        make_pool: Callable[[str, Supervisor], WorkerPool],
        kind_of: PoolKinds | None = None,
        observers: Sequence[Observer] = (),
        max_pending: int | None = None,
        tool_limits: Mapping[str, ToolLimit] | None = None,
        kill_grace: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kill_grace = kill_grace
        self.tracker = StateTracker(observers)
        self.now = clock
        self.pools = PoolSet(lambda name: make_pool(name, self), clock)
        self._kind_of = kind_of
        self.closed = threading.Event()
        self.settling_lock = threading.RLock()
        self.settling = threading.Condition(self.settling_lock)
        """The condition of all futures, see JobFuture; and its lock, which is faster to take by itself."""
        self.on_said: Callable[[Assignment, str, Any], object] | None = None
        """Told of what functions in worker processes log and print."""
        self.on_closed: list[Callable[[], object]] = []
        """Called once all is over, in order."""
        self.let_go_of: Callable[[], object] = lambda: None
        """Called after those, when it is closed and all callbacks were called: there is nothing of it to wait for."""
        self.intake = JobIntake(max_pending)
        self._callbacks = Callbacks()
        self._let_go = threading.Event()
        self._thread: threading.Thread | None = None
        self._launched = False
        self._start_lock = threading.RLock()  # as JobIntake's
        self._right_to_run = [True]
        """Taken by the thread that runs the loop, or by whoever closes it unused: popping is one step."""
        self._loop = SupervisorLoop(clock)
        self._loop.before_calls = self._accept_submitted
        self._loop.before_sleep = self._end_turn
        self._running = RunningAttempts()
        self._run_times = RunTimes()
        self._dispatcher = Dispatcher(max_workers, self.pools.made)
        if tool_limits:
            self._dispatcher.throttle = Throttle(
                tool_limits, now=clock, call_at=self.call_at, let_go=self._dispatcher.push_front
            )
        self._starts_nothing = False
        """Shut down in a way that lets no further attempt begin."""
        self.is_parents = False
        """It was made by the process that this one was forked from, and runs there."""

    # ------------------------------------------------------------------ from any thread

    def admit(
        self,
        job: Job,
        *,
        driver: JobDriver | None = None,
        scope: JobScope | None = None,
        timeout: float | None = None,
        waited: float | None = None,
    ) -> JobFuture:
        """Take a job in: checked, prepared for its pool and queued. See JobIntake for what it raises.

        `waited`: it was taken in before, by a host that is gone, so many seconds ago; no bound on the queue holds it.
        """
        self.intake.refuse_if_closed()
        if (twin := self.intake.twin(job)) is not None:
            return twin
        if driver is None:  # else whoever drives may have its function called in another way
            check_arguments(job.function, job.args, job.kwargs)
        live = job.live
        live.pool, live.payload = check_job(job, self._kind_of)
        live.memory_limit = job.memory_limit
        live.driver = driver
        live.scope = scope
        live.queued_at = self.now() - (waited or 0.0)
        future = self.intake.enter(job, JobFuture(job, self), timeout, needs_place=waited is None)
        self._wake()
        return future

    def _wake(self) -> None:
        if not self._launched:
            self._start_thread()
        self._loop.wake()

    def cancel(self, job: Job) -> bool:
        """Ask for the job's end; False where it is over, or not this executor's."""
        return self._ask_to_end(job, StopReason.CANCEL)

    def let_go(self, job: Job) -> None:
        """End a live job that another host is to run."""
        self._ask_to_end(job, StopReason.SHUTDOWN)

    def _ask_to_end(self, job: Job, reason: StopReason) -> bool:
        if job.status in TERMINAL or self.is_parents or not self.intake.holds(job):
            return False
        self.call_soon(self._end_early, job, reason)
        return True

    def running(self) -> list[Assignment]:
        """The attempts under way."""
        return self._running.snapshot()

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self._loop.call_soon(callback, *args)

    def catch_up(self, timeout: float) -> None:
        """Wait until all that it was asked for before is done: at most `timeout` seconds, and not on its own thread."""
        if not self.is_started() or self.is_parents or threading.current_thread() is self._thread:
            return
        done = threading.Event()
        self.call_soon(done.set)
        ends = time.monotonic() + timeout
        while not (done.wait(CAUGHT_UP_SECONDS) or self.closed.is_set() or time.monotonic() >= ends):
            pass

    def expect_callback(self) -> None:
        """A future is about to have one."""
        if self._launched:
            with contextlib.suppress(RuntimeError):  # no thread to be had: it is tried again when the job is over
                self._callbacks.start()

    def deliver(self, callback: Callable[[Future[Any]], object], future: Future[Any]) -> None:
        """Run a future's callback: elsewhere, if this is the supervisor's thread."""
        if threading.current_thread() is self._thread:
            self._callbacks.call(functools.partial(callback, future))
        else:
            callback(future)

    def close(self, *, cancel_pending: bool, cancel_running: bool) -> None:
        """Take no more jobs; end once those there are over. Calling again with more to cancel hastens it."""
        if self.is_parents:
            return
        self.intake.close()
        started = self.is_started()
        if started or self.intake.jobs:
            self.call_soon(self._close, cancel_pending, cancel_running)
            if not started:
                self._start_thread()  # as whoever has submitted the first is about to
            elif self._right_to_run:
                self._launch()  # this is a signal handler in the middle of `_start_thread`, and will wait for the end
        elif self._may_run():
            self._loop.close()
            self._over()

    def wait(self) -> None:
        """Wait until it is closed and all callbacks were called: not for one that hangs, nor from within one."""
        self.closed.wait()
        if not self._callbacks.is_calling_here():
            self._let_go.wait()

    def cut_off_in(self, seconds: float) -> None:
        """Once it is closed: cancel what is not over `seconds` from now. Keeps nothing waiting where all is."""
        if self.is_started():
            self.call_soon(self._cut_off_at, self.now() + max(0.0, seconds))

    def told_to_end(self, number: signal.Signals) -> None:
        """The program ends by a signal: so do all jobs, and no further ones are taken.

        At a prompt, where the program goes on, the jobs end and the executor stays.
        """
        if self.intake.jobs:
            logger.warning("%s ends %d jobs", number.name, len(self.intake.jobs))
        if hasattr(sys, "ps1"):
            self.call_soon(self._cancel_all, self.intake.all_held())
        else:
            self.close(cancel_pending=True, cancel_running=True)

    def leave_to_parent(self) -> None:
        """In a forked process, which has none of its threads: take no jobs, wait for none, and reach nothing of it.

        Its locks are made anew: another thread may have held them.
        """
        self.is_parents = True
        self.intake.leave_to_parent()
        self._loop.leave_to_parent()
        self.settling_lock = threading.RLock()
        self.settling = threading.Condition(self.settling_lock)
        self.closed, self._let_go = threading.Event(), threading.Event()
        self.closed.set()
        self._let_go.set()

    def refuse_if_parents(self) -> None:
        """
        Raises:
            ExecutorClosedError: it is the parent's.
        """
        if self.is_parents:
            self.intake.refuse_if_closed()

    def is_started(self) -> bool:
        return self._launched

    def _start_thread(self) -> None:
        with self._start_lock:
            if not self._launched:
                self._launched = True
                try:
                    self._launch()
                except RuntimeError:  # no thread to be had: the next submission tries again
                    self._launched = False
                    raise

    def _launch(self) -> None:
        threading.Thread(target=self._run, name="executor-supervisor", daemon=True).start()

    def _may_run(self) -> bool:
        try:
            return self._right_to_run.pop()
        except IndexError:
            return False

    # ------------------------------------------------------------------ the supervisor's thread

    def _run(self) -> None:
        if not self._may_run():
            return
        self._thread = threading.current_thread()
        try:
            self._loop.run()
        except BaseException as error:
            logger.critical("the supervisor has failed: its jobs are given up", exc_info=True)
            self._give_up_all(error)
            raise
        finally:
            self._over()

    def _give_up_all(self, error: BaseException) -> None:
        """No promise holds any more; but nobody is left to wait for ever."""
        self.intake.close()
        for job in list(self.intake.jobs.values()):
            failure = JobError(f"the executor has failed: {repr_of(error)}")
            driver, future = job.live.driver, job.live.future
            if driver is not None:
                driver.doom(failure)
            if future is not None:
                future.settle(None, failure)

    def _over(self) -> None:
        self._callbacks.close()
        for callback in self.on_closed:
            try:
                callback()
            except BaseException:  # somebody waits for the end, and would for ever
                logger.exception("what an executor's end calls for failed")
        self.closed.set()
        self._callbacks.wait()
        self.let_go_of()
        self._let_go.set()

    def _end_turn(self) -> float:
        """What every turn ends with; the time at which the next is wanted at the latest."""
        self._accept_submitted()
        self.pools.relieve_if_due()
        self._dispatcher.run(self._start, self._start_behind)
        self.pools.flush()
        self.apply_limits()
        return min(self._running.due, self.pools.relieve_at)

    def apply_limits(self) -> None:
        """Interrupt and stop what is past its limits by now."""
        now = self.now()
        if self._running.due <= now:
            self._running.apply(now, self._interrupt, self._stop)

    def _accept_submitted(self) -> None:
        submitted = self.intake.submitted
        for _ in range(len(submitted)):
            self._accept(submitted.popleft())

    def _accept(self, job: Job) -> None:
        live = job.live
        self.tracker.enter(job)
        if job.queue_timeout is not None:
            self._set_timer(job, "queue", live.queued_at + job.queue_timeout, self._queue_timed_out)
        if job.deadline is not None:
            self._set_timer(job, "deadline", live.queued_at + job.deadline, self._deadline_passed)
        if live.driver is not None:
            live.driver.accepted()
            return
        retry_at = job.state.retry_at
        if retry_at is None:
            self._dispatcher.push(job)
        else:  # it was to be retried when its host died
            due = self.now() + retry_at - time.time()
            self._set_timer(job, "retry", due, functools.partial(self._retry_due, self._dispatcher.push))

    def enqueue(self, job: Job) -> None:
        """Let a driven job wait for its turn."""
        self._dispatcher.push(job)

    # --- starting ---

    def _start(self, job: Job) -> None:
        live = job.live
        if live.driver is not None:
            self._grant_slot(job, live.driver)
            return
        try:
            assignment = self._assign(job, job.state.attempt + 1)
        except Exception as fault:
            self._dispatcher.attempt_over(job)
            self._fail_undecided(job, fault)
        else:
            self._give_to_pool(assignment)

    def _grant_slot(self, job: Job, driver: JobDriver) -> None:
        self._dispatcher.reserved += 1
        if job.state.status is not JobStatus.RUNNING:  # else it wants another within the same attempt
            self.intake.leave_queue(job)
            self.tracker.advance(job, JobStatus.RUNNING, attempt=job.state.attempt + 1)
        driver.slot_granted()

    def _start_behind(self, job: Job) -> bool:
        """Lay the job ready behind a short one, if it is short itself."""
        live = job.live
        try:
            assignment = self._assign(job, job.state.attempt + 1)
            if assignment.short and self.pools.start_behind(assignment):
                return True
        except Exception as fault:
            self._fail_undecided(job, fault)
            return True
        live.assignment = None
        return False

    def start_driven(self, job: Job, prepare: Callable[[Assignment], None]) -> None:
        """Run one attempt of a driven job in the slot that it holds."""
        assignment = self._assign(job, job.state.attempt)
        prepare(assignment)
        if job.live.driver.release_slot():  # the pool's worker holds it now
            self._dispatcher.reserved -= 1
        self._give_to_pool(assignment)

    def _assign(self, job: Job, number: int) -> Assignment:
        live = job.live
        live.assignment = assignment = Assignment(job, number, live.payload)
        assignment.checkpoint = live.checkpoint
        assignment.memory_limit = live.memory_limit
        assignment.run_time = run_time = self._run_times.of(job.function)
        assignment.short = run_time.seconds <= SHORT_RUN
        if live.scope is not None:
            live.scope.prepare(assignment)
        return assignment

    def _give_to_pool(self, assignment: Assignment) -> None:
        try:
            self.pools.start(assignment)
        except Exception as error:
            logger.exception("a pool could not start a job", extra={"job_id": assignment.job.job_id})
            failure = WorkerCrashedError(f"no worker could be started: {repr_of(error)}")
            self.ended(assignment, Ending.CRASHED, error=failure)

    # --- what pools tell (pools.base.PoolSupervisor) ---

    def started(self, assignment: Assignment, at: float) -> None:
        job = assignment.job
        live = job.live
        assignment.started_at = at
        driver = live.driver
        self._running.add(assignment, at, apply_max_runtime=driver is None or driver.applies_max_runtime)
        if driver is None:
            self.intake.leave_queue(job)
            self.tracker.advance(job, JobStatus.RUNNING, attempt=assignment.number)

    def ended(
        self, assignment: Assignment, ending: Ending, value: Any = None, error: BaseException | None = None
    ) -> None:
        job = assignment.job
        if ending is Ending.CRASHED and assignment not in self._running:
            self.started(assignment, self.now())  # an attempt it was, though its worker died before it was ready
        reason = self._forget(assignment)
        self._dispatcher.attempt_over(job)
        try:
            self._follow(assignment, ending, reason, value, error)
        except BaseException as fault:  # raised by code of the error's, perhaps, which may raise anything
            self._fail_undecided(job, fault)

    def _follow(
        self,
        assignment: Assignment,
        ending: Ending,
        reason: StopReason | None,
        value: Any,
        error: BaseException | None,
    ) -> None:
        """What follows an attempt that is over."""
        job = assignment.job
        if ending is Ending.RETURNED:
            record_attempt(assignment, None, self.now())
            self._succeeded(job, value)
            return
        if reason is not None or ending is Ending.STOPPED or ending is Ending.ABANDONED:
            error = stop_error(job, reason)
        assert error is not None
        error = as_exception(error)
        if isinstance(error, SoftTimeoutError):
            error = soft_timeout_error(job, error)
        record_attempt(assignment, error, self.now())
        self._failed(job, error)

    def _fail_undecided(self, job: Job, fault: BaseException) -> None:
        """Fail a job of which it could not be decided what follows: nobody else would end it."""
        what = traceback_text(fault, fault.__traceback__)
        logger.error("it could not be decided what follows: the job fails\n%s", what, extra={"job_id": job.job_id})
        failure = JobError(f"it could not be decided what follows: {repr_of(fault)}")
        if job.status in TERMINAL:
            return
        if job.live.driver is not None:
            job.live.driver.attempt_failed(failure)
        else:
            self.fail(job, failure)

    def handed_back(self, assignment: Assignment) -> None:
        job = assignment.job
        live = job.live
        reason = self._forget(assignment)
        if live.driver is None or reason is not None:
            self._dispatcher.attempt_over(job)
        if job.state.status in TERMINAL:
            return
        if reason is not None:
            self._end_unstarted(job, stop_error(job, reason))
        elif live.driver is not None:
            # It holds its slot still: again, in another worker.
            again = self._assign(job, assignment.number)
            again.context, again.scope = assignment.context, assignment.scope
            self._give_to_pool(again)
        else:
            if job.state.status is JobStatus.RUNNING:
                self.tracker.advance(job, JobStatus.PENDING)
            self._dispatcher.push_front(job)

    def on_message(self, assignment: Assignment | None, topic: str, content: Any) -> None:
        if assignment is None:
            return
        live = assignment.job.live
        if topic == "progress":
            assignment.job.report_progress(Progress(*content))
            self._running.alive(assignment, self.now())
        elif topic == "checkpoint":
            live.checkpoint = content
        elif self.on_said is not None:
            self.on_said(assignment, topic, content)
        if live.scope is not None:
            live.scope.on_message(assignment, topic, content)
        elif live.driver is not None:
            live.driver.receive(topic, content)
        elif topic in ("log", "output"):
            log_said(assignment, topic, content)

    def watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        self._loop.watch(fd, on_readable)

    def watch_writable(self, fd: int, on_writable: Callable[[], None] | None) -> None:
        self._loop.watch_writable(fd, on_writable)

    def unwatch(self, fd: int) -> None:
        self._loop.unwatch(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> LoopTimer:
        return self._loop.call_at(when, callback)

    # --- what follows an attempt ---

    def _succeeded(self, job: Job, value: Any) -> None:
        driver = job.live.driver
        if driver is not None:
            driver.resolve(value)
        else:
            self.finish(job, JobStatus.COMPLETED, value)

    def _failed(self, job: Job, error: BaseException) -> None:
        live = job.live
        if job.state.error_code == "RATE_LIMITED" and self._dispatcher.throttle is not None:
            self._dispatcher.throttle.pause(job, job.policy.limit_retry_after(retry_after_of(error)))
        if live.driver is not None:
            live.driver.attempt_failed(error)
            return
        decision = self.decide(job, error)
        if decision.retry:
            self.retry_later(job, decision, self._dispatcher.push, error)
        else:
            self.give_up(job, decision, error, failed_as(job, error))

    def decide(self, job: Job, error: BaseException) -> RetryDecision:
        """What follows an attempt that ended with `error`."""
        if self._starts_nothing:
            return RetryDecision(retry=False, reason="the executor is shut down")
        if is_end_of(job, error):
            return RetryDecision(retry=False, reason="the job was to end")
        return decide(
            job.policy,
            code=error_code_of(error),
            attempt=job.state.attempt,
            crashes=job.state.crashes,
            retry_after=retry_after_of(error),
        )

    def retry_later(
        self, job: Job, decision: RetryDecision, when_due: Callable[[Job], None], error: BaseException | None
    ) -> None:
        """RETRYING now, without a slot; `when_due(job)` once the delay is over."""
        live = job.live
        live.alone = decision.alone
        if live.memory_limit is not None:
            live.memory_limit = decision.memory_limit(live.memory_limit)
        self._take_unused_slot(job)
        self.tracker.advance(job, JobStatus.RETRYING, error, retry_at=time.time() + decision.delay)
        self._set_timer(job, "retry", self.now() + decision.delay, functools.partial(self._retry_due, when_due))

    def _retry_due(self, when_due: Callable[[Job], None], job: Job) -> None:
        job.live.queued_at = self.now()
        when_due(job)

    def give_up(self, job: Job, decision: RetryDecision, error: BaseException, status: JobStatus | None = None) -> None:
        """As `fail`, after an attempt."""
        if decision.quarantine:
            self.intake.quarantined[job.job_id] = job
        self.fail(job, error, status)

    def fail(self, job: Job, error: BaseException, status: JobStatus | None = None) -> None:
        """End the job in `status`; by default FAILED, or CANCELLED where the error says so."""
        error = as_exception(error)
        job.record_error(*code_and_message(error))
        if status is None:
            status = JobStatus.CANCELLED if isinstance(error, JobCancelledError) else JobStatus.FAILED
        self.finish(job, status, error=error)

    def finish(self, job: Job, status: JobStatus, value: Any = None, error: BaseException | None = None) -> None:
        """The one place where a job reaches a terminal state."""
        live = job.live
        if live.timers:
            for timer in live.timers.values():
                timer.cancel()
        self._take_unused_slot(job)
        records = records_in(value) if type(value) is dict else None
        self.tracker.advance(job, status, error, records_processed=records)
        self.intake.leave(job)
        # Let go of what only a live job needs. The future holds the job, so the job must not hold the future.
        future, live.future = live.future, None
        live.payload = live.assignment = live.timers = live.checkpoint = live.scope = None
        assert future is not None
        future.settle(value, error)
        if self.intake.closed and not self.intake.jobs:
            self.pools.close(self._loop.stop)

    def _take_unused_slot(self, job: Job) -> None:
        driver = job.live.driver
        if driver is not None and driver.release_slot():
            self._dispatcher.reserved -= 1
            self._dispatcher.attempt_over(job)

    # --- ending early ---

    def _end_early(self, job: Job, reason: StopReason) -> None:
        """End a live job: at once where nothing of it runs, else once its attempt is dead."""
        live = job.live
        if job.state.status in TERMINAL:
            return
        assignment: Assignment | None = live.assignment
        if assignment is not None and live.driver is not None:  # one that is handed back would be given out again
            live.driver.stopping(stop_error(job, reason))
            self._stop(assignment, reason)
        elif assignment is not None and (assignment in self._running or not self._recall(assignment)):
            self._stop(assignment, reason)
        else:
            self._end_unstarted(job, stop_error(job, reason))

    def _recall(self, assignment: Assignment) -> bool:
        return self.pools.recall(assignment)

    def _end_unstarted(self, job: Job, error: JobTimeoutError | JobCancelledError) -> None:
        driver = job.live.driver
        if driver is not None:
            driver.doom(error)
        else:
            self.fail(job, error)

    def _queue_timed_out(self, job: Job) -> None:
        live = job.live
        if job.state.status is not JobStatus.PENDING:
            return
        if live.assignment is not None and not self._recall(live.assignment):
            return  # it has begun
        self._end_unstarted(job, queue_timeout_error(job))

    def _deadline_passed(self, job: Job) -> None:
        self._end_early(job, StopReason.DEADLINE)

    def _interrupt(self, assignment: Assignment) -> None:
        self.pools.interrupt(assignment)

    def _stop(self, assignment: Assignment, reason: StopReason) -> None:
        self._running.stopping(assignment, reason)
        if assignment.stop_asked_at is None:
            assignment.stop_asked_at = self.now()
        grace = min(self.kill_grace, CANCEL_GRACE) if reason >= StopReason.SHUTDOWN else self.kill_grace
        self.pools.of(assignment.job).stop(assignment, grace=grace)

    def lend_slot(self, job: Job) -> None:
        """The attempt that runs of a driven job waits for another job, which may have its slot."""
        assignment: Assignment | None = job.live.assignment
        if assignment is not None:
            self._dispatcher.lent.add(job)
            self.pools.of(job).on_blocked(assignment)

    def take_slot_back(self, job: Job) -> None:
        """It waits no more. For a moment one attempt more than `max_workers` may run."""
        self._dispatcher.lent.discard(job)

    def stop_attempt(self, job: Job, reason: StopReason) -> None:
        """End what runs of a driven job, and leave the rest to its driver."""
        if job.live.assignment is not None:
            self._stop(job.live.assignment, reason)

    # --- shutting down ---

    def _close(self, cancel_pending: bool, cancel_running: bool) -> None:
        self._starts_nothing |= cancel_pending or cancel_running
        for job in list(self.intake.jobs.values()):
            running = job.status is JobStatus.RUNNING
            if cancel_running or (cancel_pending and not running):
                self._end_early(job, StopReason.SHUTDOWN)
        if not self.intake.jobs:
            self.pools.close(self._loop.stop)

    def _cut_off_at(self, when: float) -> None:
        self.call_at(when, functools.partial(self._close, cancel_pending=True, cancel_running=True))

    def _cancel_all(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._end_early(job, StopReason.CANCEL)

    # --- bookkeeping ---

    def _forget(self, assignment: Assignment) -> StopReason | None:
        assignment.job.live.assignment = None
        if self._dispatcher.lent:
            self._dispatcher.lent.discard(assignment.job)
        return self._running.remove(assignment)

    def _set_timer(self, job: Job, name: str, when: float, callback: Callable[[Job], None]) -> None:
        timers = job.live.timers
        if timers is None:
            timers = job.live.timers = {}
        timers[name] = self.call_at(when, functools.partial(callback, job))
