"""The supervisor: one thread that owns the state of every job, and decides what happens next.

    submit ──► ready queue ──► pool ──► ended ──► COMPLETED | FAILED | CANCELLED
                   ▲                      │
                   └────── RETRYING ◄─────┘  retry.decide

Pools report to it, and callers talk to it through its inbox, so its state needs no locks. The retries of a job with a
driver are decided elsewhere (by Prefect's engine, or an overridden `execute_job`): the supervisor grants it slots and
runs its attempts. `docs/explanation/supervision.md` says which part does what.
"""

from __future__ import annotations

import functools
import logging
import signal
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.exceptions.display import repr_of
from executor_adapter.job import TERMINAL, Job, JobStatus, Observer, Progress, ToolLimit, function_key
from executor_adapter.pools.base import Assignment, WorkerPool
from executor_adapter.pools.gpus import gpu_environment
from executor_adapter.pools.kinds import PoolKinds
from executor_adapter.pools.loop import SupervisorLoop
from executor_adapter.pools.memory.guard import MemoryGuard
from executor_adapter.pools.selection import check_job
from executor_adapter.pools.transport.envelope import PLAIN_TYPES, Ending, Outcome, crashed
from executor_adapter.supervision.futures import FutureHub, JobFuture
from executor_adapter.supervision.intake import JobIntake
from executor_adapter.supervision.limits import RunningAttempts, Stopping
from executor_adapter.supervision.messages import (
    JobScope,
    OutputMode,
    call_shown,
    is_output_full,
    show_message,
)
from executor_adapter.supervision.outcome import FollowUp, StateTracker, StopReason, stopped
from executor_adapter.supervision.resources import Capacity
from executor_adapter.supervision.scheduling import Dispatcher, PoolSet, SlotLimits
from executor_adapter.supervision.thread import Discard, SupervisorThread

logger = logging.getLogger("executor_adapter")

SHORT_RUN_SECONDS = 0.002
"""Functions that take less than this on average may have other jobs queued behind them in their worker."""
MAX_BEHIND, MAX_SECONDS_BEHIND = 32, 0.016
"""How many jobs may be queued behind one, and the seconds that those before the last of them may take together."""

MAX_FUNCTIONS = 1024
"""Functions whose run time is remembered."""

_UNKNOWN = float("inf")
_NEW_SHARE = 0.3


class Supervisor:
    """Runs jobs through their attempts; see the module.

    `make_pool` makes a pool when the first job needs it, of the class that `kind_of` returns. `make_thread` makes what
    runs the loop.
    """

    stopping: Stopping

    def __init__(
        self,
        *,
        limits: SlotLimits,
        make_pool: Callable[[str, Supervisor], WorkerPool],
        kind_of: PoolKinds,
        observers: Sequence[Observer],
        max_pending: int | None,
        tool_limits: Mapping[str, ToolLimit],
        memory_guard: MemoryGuard | None,
        read_capacity: Callable[[], Capacity],
        kill_grace: float,
        output: OutputMode,
        clock: Callable[[], float] = time.monotonic,
        make_thread: Callable[..., SupervisorThread] = SupervisorThread,
    ) -> None:
        self.now = clock
        self._kind_of = kind_of
        self._loop = loop = SupervisorLoop(self._turn, clock)
        self.watch, self.watch_writable, self.unwatch = loop.watch, loop.watch_writable, loop.unwatch
        self.call_at = loop.call_at
        self.thread = make_thread(loop, lambda error: self.stopping.fail_all(error), self.count_jobs)
        self.call_soon: Callable[..., None] = self.thread.call_soon
        self.futures = FutureHub(
            self.thread, self.cancel_job, self.check_not_forked, self, reports_failures=not observers
        )
        self.intake = JobIntake(max_pending, self.thread.may_wait, self.futures.waiting)
        self.tracker = StateTracker(observers)
        self.pools = PoolSet(lambda name: make_pool(name, self), loop.stop)
        self.dispatcher = Dispatcher(
            loop,
            self.intake,
            self.pools,
            limits,
            read_capacity=read_capacity,
            memory_guard=memory_guard,
            tool_limits=tool_limits,
        )
        self.discard = Discard(lambda: self.thread.is_inline or self.thread.belongs_to_parent)
        self.follow_up = FollowUp(loop, self.intake, self.tracker, self.dispatcher, self.pools, self.discard)
        self._running = RunningAttempts()
        self.stopping = Stopping(loop, self.intake, self.pools, self._running, self.follow_up, kill_grace=kill_grace)
        self._run_times = RunTimes()
        self.is_output_full = functools.partial(is_output_full, output)
        self._show_message = functools.partial(show_message, output)
        self.on_output: list[Callable[[Assignment, str, Any], object]] = []
        """Called in order with what functions in worker processes log and print."""
        self.thread.on_closed += [self.discard.close, self._report_unread]

    # ------------------------------------------------------------------ from any thread

    def admit(
        self,
        job: Job,
        *,
        driver: Any = None,
        scope: JobScope | None = None,
        timeout: float | None = None,
        waited: float | None = None,
        stored: Any = None,
    ) -> JobFuture:
        """Admit a job: check it, prepare it for its pool and queue it. See JobIntake for what it raises.

        `driver`: the JobDriver of a job whose retries are decided elsewhere.
        `waited`: seconds since another host, which has died, admitted it; then `max_pending` does not apply, and it
        runs beside a live job with its dedupe_key, as it did there.
        `stored`: what a store needs of the job to write it for the first time.
        """
        if waited is None and job.dedupe_key is not None and (twin := self.intake.twin(job)) is not None:
            return twin
        # A driver may call the function with other arguments.
        pool, payload = check_job(job, self._kind_of, has_arguments=driver is None)
        resources = None if job.resources is None else self.dispatcher.resources.needs_of(job, pool)
        queued_at = self.now() - (waited or 0.0)

        def prepare() -> None:
            live = job.live
            live.pool, live.payload, live.resources = pool, payload, resources
            live.memory_limit, live.is_plain = job.memory_limit, _is_plain(job)
            live.driver, live.scope, live.queued_at = driver, scope, queued_at

        future = JobFuture(job, self.futures)
        future = self.intake.enter(job, future, timeout, is_new=waited is None, prepare=prepare, stored=stored)
        self.thread.wake()
        return future

    def cancel_job(self, job: Job) -> bool:
        """Cancel the job; return False if it has ended or belongs to another executor."""
        return self._request_end(job, StopReason.CANCEL)

    def release_job(self, job: Job) -> None:
        """End a live job here, because another host is to run it."""
        self._request_end(job, StopReason.HANDOVER)

    def set_lease(self, until: float) -> None:
        """Start no attempt after this `lease_time`, and let guardians end those that run; infinite for no such time.

        It is set anew each time that the lease is renewed. So it passes only if this process was stopped.
        """
        self.call_soon(self.dispatcher.set_lease, until)
        self.call_soon(self.pools.set_lease, until)

    def _request_end(self, job: Job, reason: StopReason) -> bool:
        if job.state.status in TERMINAL or self.thread.belongs_to_parent or not self.intake.holds(job):
            return False
        self.call_soon(self.stopping.end_job, job, reason)
        return True

    def resize(self, limits: SlotLimits) -> None:
        """Let so many attempts run at once from now on: no further one starts beyond that once this has returned."""
        self.dispatcher.limits = limits
        self.call_soon(self.pools.resize, limits)

    def count_jobs(self) -> int:
        """Return how many jobs have not ended."""
        return len(self.intake.jobs)

    def running(self) -> list[Assignment]:
        """Return the attempts that run now."""
        return list(self._running)

    def close(self, *, cancel_pending: bool, cancel_running: bool) -> None:
        """Accept no more jobs, and end once the live ones have ended. A second call may cancel more of them."""
        if self.thread.belongs_to_parent:
            return
        self.intake.close()
        request = functools.partial(self.stopping.shut_down, cancel_pending, cancel_running)
        self.thread.close(request, needed=bool(self.intake.jobs))

    def close_within(self, seconds: float) -> None:
        """After closing, cancel the jobs that have not ended after `seconds`."""
        if self.thread.is_started():
            self.call_soon(self.stopping.shut_down_at, self.now() + max(0.0, seconds))

    def on_signal(self, number: signal.Signals) -> None:
        """End all jobs and accept no more, because a signal ends the program.

        At an interactive prompt, where the program continues, the jobs end and the executor stays usable.
        """
        if self.intake.jobs:
            logger.warning("%s ends %d jobs", number.name, len(self.intake.jobs))
        if hasattr(sys, "ps1"):
            self.call_soon(self._end_jobs, self.intake.all_held())
        else:
            self.close(cancel_pending=True, cancel_running=True)

    def _end_jobs(self, jobs: list[Job]) -> None:
        """Cancel these jobs in one turn: none that waits starts because another has ended."""
        for job in jobs:
            self.stopping.end_job(job, StopReason.CANCEL)

    def detach_after_fork(self) -> None:
        """Accept no jobs in a forked process, which has none of the threads, and leave the parent's resources alone."""
        self.intake.detach_after_fork()
        self.thread.detach_after_fork()
        self.futures.detach_after_fork()

    def check_not_forked(self) -> None:
        """Check that this process made the executor.

        Raises:
            ExecutorClosedError: This process was forked from the one that made it.
        """
        if self.thread.belongs_to_parent:
            self.intake.refuse_if_closed()

    # ------------------------------------------------------------------ the supervisor's thread

    def _turn(self) -> float:
        """Accept jobs, make the calls that are due, start jobs and apply limits; return when the next turn is needed.

        Jobs are accepted here alone: before the calls, so that a cancel never overtakes its job, and before timers and
        starts, so that a job whose deadline is past already never starts.
        """
        if self.intake.submitted:
            self._accept_submitted()
        if self._loop.arrived or self._loop.timers:
            self._loop.run_calls()
        guard, now = self.dispatcher.memory_guard, self.now()
        if guard is not None and guard.due <= now and (self._running or self.dispatcher.queue.lines):
            guard.check(now, list(self.pools.made.values()))
        if self.dispatcher.has_work:
            self.dispatcher.run(self._start, self._queue_behind)
        for pool in self.pools.made.values():
            if pool.needs_flush:
                pool.flush()
        if self._running.due <= self._loop.read_until:
            self.stopping.apply_limits(self._loop.read_until)
        if self.discard.collected:
            self.discard.flush()
        due = min(self._running.due, self.dispatcher.shortage_due)
        return min(due, guard.due) if guard is not None and self._running else due

    def _accept_submitted(self) -> None:
        for _ in range(len(self.intake.submitted)):
            job = self.intake.submitted.popleft()
            if self.tracker.observers:
                self.tracker.announce(job)
            if (retry_at := job.state.retry_at) is not None:  # It was waiting for a retry when its host ended.
                self.follow_up.schedule_retry(job, self.now() + retry_at - time.time(), self.dispatcher.push)
            elif job.live.driver is not None:
                job.live.driver.accepted()
            else:
                self.dispatcher.push(job)
            if job.queue_timeout is not None or job.deadline is not None:
                self.stopping.set_timers(job)

    # --- starts ---

    def _start(self, job: Job) -> None:
        """Start the next attempt of a job, or grant its driver a slot."""
        if job.live.driver is not None:
            self._grant_slot(job)
            return
        try:
            assignment = self._assign(job, job.state.attempt + 1)
        except Exception as fault:
            self.dispatcher.attempt_ended(job)
            self.follow_up.fail_undecided(job, fault)
        else:
            self._give_to_pool(assignment)

    def _grant_slot(self, job: Job) -> None:
        self.dispatcher.reserve(job)
        driver = job.live.driver
        driver.take_slot()
        begin = functools.partial(self._begin_driven, job)
        if not driver.waits_for_worker:
            begin()
            return
        try:
            pool = self.pools.of(job)
        except Exception:
            begin()  # The attempt fails for the same reason, in the usual way.
        else:
            pool.reserve_worker(job, begin)

    def _begin_driven(self, job: Job) -> None:
        if not job.live.driver.may_begin:
            return  # The job was ended while its worker started.
        if job.state.status is not JobStatus.RUNNING:  # Otherwise it needs another slot within the same attempt.
            self.intake.leave_queue(job)
            self.tracker.advance(job, JobStatus.RUNNING)
        job.live.driver.slot_granted()

    def _queue_behind(self, job: Job) -> bool:
        """Queue the job in a worker behind a short one, if it is short itself; return whether nothing is left to do.

        Not if anything else than a slot may still hold it back.
        """
        live, pool = job.live, self.pools.made.get(job.live.pool)
        if pool is None or live.driver is not None or live.resources is not None or live.alone:
            return False
        try:
            assignment = self._assign(job, job.state.attempt + 1)
            if assignment.max_behind and pool.queue_behind(assignment):
                if pool.relief is None:
                    pool.expect_overdue()
                return True
        except Exception as fault:
            self.follow_up.fail_undecided(job, fault)
            return True
        live.assignment = None
        return False

    def start_driven(self, job: Job, prepare: Callable[[Assignment], None]) -> None:
        """Run one attempt of a driven job in the slot that it holds."""
        assignment = self._assign(job, job.state.attempt)
        prepare(assignment)
        if job.live.driver.release_slot():  # The pool's worker takes the slot now.
            self.dispatcher.unreserve(job)
        self._give_to_pool(assignment)

    def _assign(self, job: Job, number: int) -> Assignment:
        """Make attempt `number` of the job."""
        live = job.live
        live.assignment = assignment = Assignment(job, number, live.payload)
        assignment.checkpoint = live.checkpoint
        assignment.memory_limit = live.memory_limit
        assignment.run_time = run_time = self._run_times.of(job.function)
        seconds = run_time.seconds
        if seconds <= SHORT_RUN_SECONDS and live.resources is None and not job.fresh_worker:
            all_fit = MAX_BEHIND * seconds <= MAX_SECONDS_BEHIND
            assignment.max_behind = MAX_BEHIND if all_fit else int(MAX_SECONDS_BEHIND / seconds)
        if live.resources is not None and (gpus := self.dispatcher.resources.machine.gpus_of(job)):
            assignment.environment = gpu_environment(gpus)
        if live.scope is not None:
            live.scope.prepare(assignment)
        return assignment

    def _give_to_pool(self, assignment: Assignment) -> None:
        """Let the pool run an attempt; if it cannot, the attempt fails as WORKER_UNAVAILABLE."""
        job, pools = assignment.job, self.pools
        try:
            (pools.made.get(job.live.pool) or pools.of(job)).start(assignment)
        except Exception as error:
            logger.exception("a pool cannot start a job", extra={"job_id": job.job_id})
            failure = WorkerUnavailableError(f"no worker could be started: {repr_of(error)}")
            self.ended(assignment, crashed(failure))

    # --- reports of the pools (pools.base.PoolSupervisor) ---

    def started(self, assignment: Assignment, at: float) -> None:
        """Note that an attempt began at the monotonic time `at`."""
        job = assignment.job
        assignment.started_at = at
        driver = job.live.driver
        self._running.begin(assignment, at, apply_max_runtime=driver is None or driver.applies_max_runtime)
        if driver is None:
            if job.live.place:
                self.intake.leave_queue(job)
            self.tracker.advance(job, JobStatus.RUNNING)

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        """Note that an attempt has ended, and complete, retry or fail its job."""
        if outcome.body.file is not None:
            outcome.body.hold()
        job = assignment.job
        if job.live.driver is None and job.state.status is not JobStatus.RUNNING:
            self._note_start(assignment, outcome)
        self._discard(assignment)
        if assignment.started_at is not None and assignment.ended_at is not None:
            assignment.run_time.learn(assignment.ended_at - assignment.started_at)
        self.dispatcher.attempt_ended(job)
        self.follow_up.follow(assignment, outcome, assignment.stop_reason)

    def _note_start(self, assignment: Assignment, outcome: Outcome) -> None:
        """Note that an attempt had begun that has ended now.

        Its pool learned of both at once, or its worker died before it was ready, which counts as an attempt.
        """
        began = self.now() if outcome.ending is Ending.CRASHED else assignment.started_at
        if began is None:
            return
        ago = max(0.0, self.now() - began)
        if outcome.ending is Ending.RETURNED and not self.tracker.observers:
            assignment.job.note_start(ago)  # Its last state follows at once, and nobody observes that it ran.
        else:
            self.tracker.advance(assignment.job, JobStatus.RUNNING, ago=ago)

    def handed_back(self, assignment: Assignment) -> None:
        """Queue a job again whose attempt its worker did not begin."""
        job = assignment.job
        driver = job.live.driver
        self._discard(assignment)
        reason = assignment.stop_reason
        if reason in (StopReason.LIMIT, StopReason.STALL):
            reason = None  # They end an attempt alone, and this one does not count.
        if driver is None or reason is not None:
            self.dispatcher.attempt_ended(job)
        if job.state.status in TERMINAL:
            return
        if reason is not None:
            self.stopping.end_unstarted_job(job, stopped(job, reason))
        elif driver is not None:  # It still holds its slot: try another worker.
            next_try = self._assign(job, assignment.number)
            next_try.context, next_try.scope = assignment.context, assignment.scope
            self._give_to_pool(next_try)
        else:
            if job.state.status is JobStatus.RUNNING:
                self.tracker.advance(job, JobStatus.PENDING)
            self.dispatcher.push(job, front=True)

    def lend_slot(self, assignment: Assignment, blocks: bool) -> None:
        """Free the slot of an attempt that waits for another job, unless it has ended."""
        job = assignment.job
        if job.live.assignment is assignment:
            self.dispatcher.lend(job)
            if blocks:
                self.pools.of(job).on_blocked(assignment)

    def take_slot_back(self, assignment: Assignment) -> None:
        """Take back a slot that was lent. For a moment one attempt more than `max_workers` may run."""
        if assignment.job.live.assignment is assignment:
            self.dispatcher.take_back(assignment.job)

    def on_message(self, assignment: Assignment | None, topic: str, content: Any) -> None:
        """Receive a message of a running function. What its receiver raises costs nothing that comes behind it."""
        call_shown(self._receive, assignment, topic, content)

    def _receive(self, assignment: Assignment | None, topic: str, content: Any) -> None:
        if assignment is None:
            self._show_message(None, topic, content)
            return
        live = assignment.job.live
        if topic in ("progress", "checkpoint") and assignment.number < assignment.job.state.attempt:
            return  # The attempt was abandoned, and goes on.
        if topic == "progress":
            assignment.job.report_progress(Progress(*content))
            self._running.note_progress(assignment, self.now())
        elif topic == "checkpoint":
            live.checkpoint = content
        elif topic == "position":
            assignment.position = content
            return
        else:
            for keep in self.on_output:
                keep(assignment, topic, content)
        if live.scope is not None and live.scope.receives:
            live.scope.on_message(assignment, topic, content)
        elif live.driver is not None and live.driver.on_message is not None:
            live.driver.on_message(topic, content)
        else:
            self._show_message(assignment, topic, content)

    def _report_unread(self) -> None:
        if self.futures.unread.failures:
            self.discard.join(1.0)  # It may hold the last reference to a future that the program has dropped.
        self.futures.unread.report()

    def _discard(self, assignment: Assignment) -> None:
        """Drop a finished assignment."""
        assignment.job.live.assignment = None
        self.dispatcher.lent.discard(assignment.job)
        self._running.discard(assignment)


class RunTime:
    """The moving average of how long one function takes."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = _UNKNOWN

    def learn(self, took: float) -> None:
        """Take the seconds of one more run into account."""
        self.seconds = took if self.seconds == _UNKNOWN else self.seconds + _NEW_SHARE * (took - self.seconds)


class RunTimes:
    """The run time of each function. A function that has never run does not count as short."""

    def __init__(self) -> None:
        self._by_function: dict[object, RunTime] = {}

    def of(self, function: object) -> RunTime:
        """Return the run time of `function`, a new one if it has not run yet."""
        # `function_key` inlined for the common case: calling it would take as long as all the rest.
        key = weakref.ref(function) if type(function) is FunctionType else function_key(function)
        if (known := self._by_function.get(key)) is None:
            if len(self._by_function) >= MAX_FUNCTIONS:
                self._by_function.clear()  # So many functions are made dynamically and never called again.
            known = self._by_function[key] = RunTime()
        return known


def _is_plain(job: Job) -> bool:
    """Return whether nothing that the job holds has code of users that runs when it is freed."""
    function = job.function
    if type(function) is FunctionType:
        if function.__closure__ or function.__defaults__ or function.__kwdefaults__:
            return False
    elif type(function) is not str and type(getattr(function, "__self__", None)) is not ModuleType:
        return False  # Not a function of a module such as `math.sqrt`.
    is_plain = not job.args or PLAIN_TYPES.issuperset(map(type, job.args))
    return is_plain and not job.kwargs and not job.metadata
