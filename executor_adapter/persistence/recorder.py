"""Recorder: writes the states of an executor's jobs to its store, on a thread of its own.

    submit ──► prepare                   refuse a job that cannot be stored
    supervisor ──► PendingWrites         append the transition only
    recorder's thread ──► JobStore.write one record for each job that has changed since the last batch

Only callers that ask for it wait for the store (`written`, `flush`). While the store cannot be written, jobs continue
and their changes stay pending; past MAX_PENDING_WRITES no new job is accepted. A batch is written at once when the last
one was long ago, and otherwise BATCH_INTERVAL after it, so that many jobs share one transaction.

Each batch renews the host's lease; without batches, the lease is renewed while any job is live. An executor without
live jobs looks for jobs that no host runs, every `recover_every` seconds, and does nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from executor_adapter.config import StoreSettings
from executor_adapter.exceptions import ExecutorClosedError
from executor_adapter.job import TERMINAL, Job, JobStatus, Transition, function_reference
from executor_adapter.persistence.lease import LOOK_SHARE, RENEWAL_SHARE, Lease
from executor_adapter.persistence.log_lines import LogLines, start_capturing, stop_capturing
from executor_adapter.persistence.pending_writes import PendingWrites, WriteBatch
from executor_adapter.persistence.serialization import StoredCall, plain, refuse_unstorable_texts, stored_call
from executor_adapter.pools.loop import LoopTimer
from executor_adapter.store import (
    Host,
    JobRecord,
    JobStore,
    LeaseLostError,
    SharedTools,
    SignedPickles,
    StoreUnavailableError,
    ToolAsk,
    ToolShare,
    close_host,
    new_host,
)
from executor_adapter.supervision.supervisor import Supervisor
from executor_adapter.supervision.tools import ToolRequest
from executor_adapter.worker.wire import lease_time

logger = logging.getLogger("executor_adapter.store")

T = TypeVar("T")

BATCH_INTERVAL = 0.02
"""Seconds between two batches."""
ASK_DELAY = 0.002
"""Seconds for which a batch waits for what the supervisor asks of tools at the end of the turn that woke the recorder.
Without it the request mostly comes just too late, and waits for the disk twice."""
BATCH_SIZE = 500
"""Jobs that one transaction writes at most."""
CHECK_INTERVAL = 1.0
"""Seconds between checks of the progress that running jobs report, and of requests to cancel them."""
MAX_PENDING_WRITES = 100_000
"""Changes kept in memory while the store cannot be written; past it new jobs are refused."""
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.2, 5.0
"""Seconds between tries while the store cannot be written; the delay doubles with each."""
SHUTDOWN_TIMEOUT = 30.0
"""Seconds for which a shutdown tries to write what is pending. It waits twice as long for a call that has begun."""
IDLE_SHUTDOWN_TIMEOUT = 3.0
"""The same where nothing is pending: only the lease is to be ended, which also ends by itself."""


class Recorder:
    """Writes jobs to a store, and holds this executor's lease on it.

    Args:
        store: the store.
        supervisor: reports transitions, and stops the jobs that another host takes over.
        queue: the queue that the jobs belong to.
        settings: the section `store` of the settings.
        pickles: signs pickled functions and arguments; None: they are stored as text.
        requeue_on_shutdown: whether jobs that a shutdown cuts off stay PENDING in the store, for the next host.
        recover: takes over jobs that no host runs; called on the recorder's thread every `recover_every` seconds of the
            settings, on request, and after the lease was lost.
    """

    def __init__(
        self,
        store: JobStore,
        supervisor: Supervisor,
        *,
        queue: str,
        settings: StoreSettings,
        pickles: SignedPickles | None,
        requeue_on_shutdown: bool,
        recover: Callable[[], object],
    ) -> None:
        self.store = store
        self.queue = queue
        self._supervisor = supervisor
        self._pickles = pickles
        self._recover = recover
        self._recover_every = (settings.recover_every if store.durable else None) or math.inf
        self._host: Host | None = None
        self._lease = Lease(settings.lease, supervisor.intake.jobs if store.durable else (), self._announce)
        self._next_watch: LoopTimer | None = None
        """The supervisor's timer for its next look at the lease."""
        self._resumed_at = 0.0
        """When such a look last came so late that this process must have been stopped before it."""
        self._asked_at: float | None = None
        """Since when the store may owe an answer, or could not be written; None: neither."""
        self._pending = PendingWrites(
            supervisor, queue, is_durable=store.durable, requeue_on_shutdown=requeue_on_shutdown
        )
        self._handed_over: dict[Job, None] = {}
        """Jobs that other hosts may run, until a recovery has looked for those that no host took."""
        self._limiter = supervisor.dispatcher.rate_limiter
        self._tools_wanted: ToolRequest | None = None
        """What the rate limiter asks for: one thing at a time. While the store is down, it waits."""
        self._tools_asked_at = 0.0
        self._tools_are_failing = False
        self._losses = 0
        """How often the lease was lost."""
        self._lines = LogLines(supervisor.intake.jobs)
        self._retry_delay = 0.0
        """Seconds until the next try to write to the store; 0: it could be written when that was last tried."""
        self._lock = threading.RLock()
        self._requests: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        """Calls for the recorder's thread, and the futures of their values."""
        self._waiting: dict[Future[Any], bool] = {}
        """Futures that callers wait for, and whether they wait too while the store cannot be written."""
        self._wake = threading.Event()
        self._hurry = threading.Event()
        """Cuts the pause between two batches short."""
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._checked_at = 0.0
        self._recovered_at = time.monotonic()
        supervisor.on_output.append(self._lines.on_message)
        start_capturing(self._lines)
        supervisor.tracker.observers.insert(0, self.on_transition)
        supervisor.thread.on_closed.append(self.close)

    # --- on submitting threads ---

    def prepare(self, job: Job, *, driven: bool = False) -> StoredCall:
        """Return what the first record of a job that is about to be submitted needs.

        Args:
            job: the job.
            driven: whether code outside decides its retries, so that no other host may run it from the store.

        Raises:
            InvalidJobError: The job cannot be stored; the message names the reason and the fix.
            StoreUnavailableError: too many changes wait for a store that cannot be written.
        """
        if len(self._pending) >= MAX_PENDING_WRITES and self._is_down:
            raise StoreUnavailableError(
                f"{self.store.url} cannot be written, and {MAX_PENDING_WRITES} job changes wait for it: "
                "restore the store, or submit later"
            )
        if job.job_id in self._supervisor.intake.quarantined:
            self._forget_if_released(job.job_id)
        if self.store.durable:
            refuse_unstorable_texts(job)
            if not driven:
                return stored_call(job, self._pickles)
        return StoredCall(function_reference(job.function))

    def _forget_if_released(self, job_id: str) -> None:
        """End the job's quarantine here if another process has released it in the store."""
        with contextlib.suppress(StoreUnavailableError):
            record = self.store.get(job_id)
            if record is not None and record.status in TERMINAL and not record.quarantined:
                self._supervisor.intake.quarantined.pop(job_id, None)

    def written(self, *, may_wait: bool) -> Future[None]:
        """Return a future that resolves once all that was submitted by now is in the store.

        While the store is down it waits if it `may_wait`, or else raises StoreUnavailableError.
        """
        done: Future[None] = Future()
        with self._lock:
            is_done = self._closing.is_set() or self._pending.is_empty or not self._supervisor.thread.is_started()
            if not is_done and self._is_down and not may_wait:
                done.set_exception(self._unavailable())
            elif is_done:
                done.set_result(None)
            else:
                self._waiting[done] = may_wait
        if not done.done():
            # When the supervisor makes this call, it has reported all jobs that were submitted before.
            self._supervisor.call_soon(self._make_ready, lambda: None, done)
            self._supervisor.call_soon(self._watch)
        return done

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all changes up to now are in the store; return False after `timeout` seconds."""
        try:
            self.written(may_wait=True).result(timeout)
        except TimeoutError:
            return False
        return not self._closing.is_set() or self._pending.is_empty

    def request(self, call: Callable[[], T]) -> Future[T]:
        """Call `call` on the recorder's thread, once everything reported by now is in the store.

        While the store is down the future raises StoreUnavailableError.

        Raises:
            ExecutorClosedError: the executor is shut down.
        """
        done: Future[T] = Future()
        with self._lock:
            if self._closing.is_set():
                raise ExecutorClosedError("the executor is shut down: make another executor")
            self._waiting[done] = False
            self._make_ready(call, done)
        self._supervisor.call_soon(self._watch)
        self._supervisor.thread.start()
        return done

    def _make_ready(self, call: Callable[[], Any], done: Future[Any]) -> None:
        with self._lock:
            self._requests.append((call, done))
            self._start()
        self._wake.set()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="executor-recorder", daemon=True)
            self._thread.start()

    # --- on the supervisor's thread ---

    def ask_for_tools(self, request: ToolRequest) -> None:
        """Get shares of tools for the supervisor's rate limiter."""
        self._tools_wanted = request
        with self._lock:
            self._start()
        self._hurry.set()
        self._wake.set()

    def on_transition(self, transition: Transition) -> None:
        """Receive a transition from the supervisor, and wake the recorder's thread."""
        self._pending.on_transition(transition)
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                with self._lock:
                    self._start()

    def _watch(self) -> None:
        """Refuse requests that a store does not answer, and stop the stored jobs before the lease ends.

        The recorder's own thread may be waiting for a store that hangs. What was silent while this process was stopped
        itself is not the store: the recorder is about to find out what has become of the lease.
        """
        left, now, pause = self._lease.seconds_left, self._supervisor.now(), self._lease.seconds * LOOK_SHARE
        watch, self._next_watch = self._next_watch, None
        if watch is not None:
            watch.cancel()
            self._resumed_at = now if now > watch.when + pause else self._resumed_at
        if left <= 0 and self._is_silent_for(self._lease.seconds * RENEWAL_SHARE):
            self._stop_before_expiry()
            return
        if self._is_silent_for(self._lease.seconds):
            self._refuse_requests()
        if self._supervisor.intake.jobs or self._waiting:
            due = now + (min(left, pause) if left > 0 else pause)
            self._next_watch = self._supervisor.call_at(due, self._watch)

    def _stop_before_expiry(self) -> None:
        self._supervisor.set_lease(math.inf)  # What no other host can know of runs on.
        self._limiter.on_lease_lost(is_over=False)
        self._refuse_requests()
        live = [job for job in list(self._supervisor.intake.jobs.values()) if job not in self._handed_over]
        known = [job for job in live if self._pending.may_be_stored(job) or self._holds_slot(job)]
        if known:
            text = "%s could not be written for %.0f s, so the lease on it ends: %d jobs are stopped here and run again"
            logger.error(text, self.store.url, self._lease.age, len(known))
            self._pending.requeued.update(known)
            self._stop(known)

    def _holds_slot(self, job: Job) -> bool:
        return job.status is JobStatus.RUNNING and self._limiter.limits(job)

    def close(self) -> None:
        """Write what is pending and end the lease, unless the store does not answer."""
        with self._lock:
            self._closing.set()
        self._hurry.set()
        self._wake.set()
        stop_capturing(self._lines)
        left = -1
        while self._thread is not None and self._thread.is_alive() and left != len(self._pending):
            left = len(self._pending)
            self._thread.join(2 * (SHUTDOWN_TIMEOUT if left else IDLE_SHUTDOWN_TIMEOUT))
        if self._thread is not None and self._thread.is_alive():
            logger.error("%d job changes could not be recorded: %s does not answer", left, self.store.url)
        self._refuse_requests()
        for done in list(self._waiting):
            self._resolve(done)

    # --- on the recorder's thread ---

    def _announce(self, until: float) -> None:
        self._supervisor.set_lease(until)
        self._supervisor.call_soon(self._watch)

    def host(self) -> Host:
        """Return this executor as a host of the store, with its lease begun.

        Raises:
            StoreUnavailableError: it cannot be registered now.
        """
        if self._host is None:
            began, host = lease_time(), new_host()
            try:
                self.store.register(host, lease=self._lease.seconds)
            except Exception as error:
                close_host(host)
                raise _outage("this host cannot be registered", error) from None
            self._host = host
            self._lease.renew(began)
        return self._host

    def write_end(self, record: JobRecord) -> None:
        """Record the end of a job that this host has claimed and cannot run.

        Raises:
            StoreUnavailableError, LeaseLostError: it is not recorded.
        """
        self.store.write(self.host().host_id, changed=[record], lease=self._lease.seconds)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(self._seconds_until_due())
            if self._limiter.is_active and self._tools_wanted is None:
                self._hurry.wait(ASK_DELAY)
            self._wake.clear()
            self._hurry.clear()
            if self._lease.seconds_left > 0:  # Otherwise this process may have been stopped: the turn finds it out.
                self._lease.announce()
            self._turn()
            self._lease.announce()
            self._hurry.wait(self._retry_delay or BATCH_INTERVAL)
        until = time.monotonic() + (SHUTDOWN_TIMEOUT if self._pending else IDLE_SHUTDOWN_TIMEOUT)
        while not self._turn() and (self._host or self._pending) and time.monotonic() < until:
            time.sleep(self._retry_delay or BATCH_INTERVAL)
        self._finish()

    def _seconds_until_due(self) -> float:
        if self._is_down:
            return 0.0
        due = [self._recovered_at + self._recover_every]
        if self._supervisor.intake.jobs:
            due += [self._checked_at + CHECK_INTERVAL, self._lease.due_at]
        return min(max(0.0, min(due) - time.monotonic()), threading.TIMEOUT_MAX)

    def _turn(self) -> bool:
        """Write and answer all that is due; return whether that has succeeded."""
        number = len(self._requests)
        self._asked_at = self._asked_at or time.monotonic()
        try:
            self._pending.collect()
            # Before the collected transitions, so that a reader who sees a job's end finds its whole log.
            self._lines.write_to(self.store)
            self._write_all()
            self._check_live_jobs()
            self._recover_if_due()
            self._answer(number)
            return True
        except StoreUnavailableError as error:
            self._on_outage(error)
        except LeaseLostError:
            self._on_lease_lost()
        except Exception:
            logger.exception("the recorder failed in one turn and continues")
        finally:
            if not self._retry_delay:
                self._asked_at = None
        return False

    def _answer(self, number: int) -> None:
        """Make the calls of so many requests: what was reported before them is in the store."""
        for _ in range(number):
            call, done = self._requests[0]
            self._asked_at = time.monotonic()
            try:
                self._resolve(done, call() if done in self._waiting else None)
            except LeaseLostError:
                raise  # The request is answered with the next lease.
            except Exception as error:
                self._resolve(done, error=error)
            self._requests.popleft()

    def _resolve(self, done: Future[Any], value: Any = None, error: Exception | None = None) -> None:
        """Give a caller what it waits for, unless it has been refused that or does not wait any more. Any thread."""
        if self._waiting.pop(done, None) is not None and done.set_running_or_notify_cancel():
            done.set_result(value) if error is None else done.set_exception(error)

    def _refuse_requests(self) -> None:
        """Fail the requests that do not wait while the store cannot be written. Any thread."""
        for done in [done for done, may_wait in list(self._waiting.items()) if not may_wait]:
            self._resolve(done, error=self._unavailable())

    def _finish(self) -> None:
        if len(self._pending):
            logger.error("%d jobs could not be recorded: %s cannot be written", len(self._pending), self.store.url)
        if self._host is not None:
            close_host(self._host)
            # Other hosts may take over at once what is left.
            with contextlib.suppress(StoreUnavailableError):
                self.store.leave(self._host.host_id)

    # --- trouble ---

    @property
    def _is_down(self) -> bool:
        """Whether the store could not be written when that was last tried, or has not answered for long."""
        return self._retry_delay > 0 or self._is_silent_for(self._lease.seconds * RENEWAL_SHARE)

    def _is_silent_for(self, seconds: float) -> bool:
        return (asked_at := self._asked_at) is not None and time.monotonic() - max(asked_at, self._resumed_at) > seconds

    def _unavailable(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"{self.store.url} cannot be written now")

    def _on_outage(self, error: StoreUnavailableError) -> None:
        """Note that the store cannot be written now."""
        if not self._retry_delay:
            self._supervisor.call_soon(self._limiter.on_outage)
            text = "%s cannot be written: %s: jobs continue, and their changes are kept in memory until it can"
            logger.error(text, self.store.url, error)
        self._retry_delay = min(max(2 * self._retry_delay, MIN_RETRY_DELAY), MAX_RETRY_DELAY)
        self._refuse_requests()

    def _on_lease_lost(self) -> None:
        """Stop all stored jobs; the next turn registers this executor as a new host, which answers the requests."""
        if self._host is not None:
            close_host(self._host)
            self._host = None
        self._losses += 1
        self._supervisor.call_soon(self._limiter.on_lease_lost)
        if known := self._pending.known_to_store(list(self._supervisor.intake.jobs.values())):
            self._give_away(known)
        self._lease.renew(None)
        self._wake.set()

    def _give_away(self, jobs: list[Job]) -> None:
        """Stop jobs that another host has taken over, and record nothing more of them."""
        self._pending.disown(jobs)
        live = sum(job.status not in TERMINAL for job in jobs)
        text = "another host has taken over %d jobs: %d are stopped here, %d had finished here and may run twice"
        logger.warning(text, len(jobs), live, len(jobs) - live)
        self._stop(jobs)

    def _stop(self, jobs: list[Job]) -> None:
        self._handed_over.update(dict.fromkeys(jobs))
        for job in jobs:
            self._supervisor.release_job(job)

    def is_stopping(self) -> bool:
        """Return whether a job that was handed over still runs here, or is not in the store as one to be claimed.

        If it were claimed while it runs, it would be ignored as a job that is live here, and then be lost.
        """
        live = self._supervisor.intake.jobs
        # A copy, since the supervisor may add to them meanwhile.
        return bool(self._pending.requeued) or any(live.get(job.job_id) is job for job in list(self._handed_over))

    # --- writing ---

    def _write_all(self) -> None:
        asks = self._tools_to_write()
        if asks or self._is_down or self._is_renewal_due():
            self._write(self._next_batch(), asks)
        # Counted now: what becomes due meanwhile is for the next turn.
        for _ in range(-(-len(self._pending) // BATCH_SIZE)):
            self._write(self._next_batch())

    def _next_batch(self, size: int = BATCH_SIZE) -> WriteBatch:
        return self._pending.batch(size, self.host().host_id)

    def _is_renewal_due(self) -> bool:
        is_due = time.monotonic() >= self._lease.due_at and bool(self._supervisor.intake.jobs)
        return is_due or self._is_recovery_due()  # Jobs that are claimed need a lease.

    def _write(self, batch: WriteBatch, asks: Sequence[ToolAsk] = ()) -> None:
        began = lease_time()
        try:
            host_id, lease = self.host().host_id, self._lease.seconds
            written = self.store.write(host_id, batch.new, batch.changed, lease=lease, asks=asks)
        except (StoreUnavailableError, LeaseLostError):
            raise
        except Exception as error:
            if asks and batch.jobs:  # Each by itself shows which of them it is.
                self._write(batch)
                self._write(self._next_batch(0), asks)
            elif asks:
                self._on_tools_failure()
                self._write(batch)
            elif len(batch.jobs) > 1:
                for _ in batch.jobs:
                    self._write(self._next_batch(1))
            elif batch.jobs:
                self._write_plain(batch)
            else:  # Nothing but the lease, which ends without it: its jobs are stopped before, as in any outage.
                raise _outage("the lease cannot be renewed", error) from None
            return
        self._lease.renew(began)
        self._mark_written(batch.jobs)
        if written.tools is not None:
            self._answer_tools(written.shares, written.tools)
        if written.taken:
            self._give_away([job for job in batch.jobs if job.job_id in set(written.taken)])

    def _write_plain(self, batch: WriteBatch) -> None:
        """Write the status and the times of the one record of `batch`: without it, a job that ended runs again."""
        job_id = batch.jobs[0].job_id
        logger.exception("the record of job %r cannot be stored as it is", job_id, extra={"job_id": job_id})
        try:
            new, changed = (list(map(plain, records)) for records in (batch.new, batch.changed))
            self.store.write(self.host().host_id, new, changed, lease=self._lease.seconds)
        except (StoreUnavailableError, LeaseLostError):
            raise
        except Exception:
            logger.exception("a change of job %r is not in the store: it may run again", job_id)
            self._mark_written(batch.jobs)
            if batch.new:  # Without a row, its next change would look as if another host had taken the job.
                self._pending.disown(batch.jobs)
        else:
            self._mark_written(batch.jobs)

    def _mark_written(self, jobs: list[Job]) -> None:
        self._pending.mark_written(jobs)
        now = time.monotonic()
        if self._retry_delay:
            seconds = now - (self._asked_at or now)
            logger.warning("%s can be written again after %.1f s: nothing was lost", self.store.url, seconds)
            self._retry_delay = 0.0
        self._asked_at = now

    # --- tools ---

    def _tools_to_write(self) -> Sequence[ToolAsk]:
        """Return what has to be written; answer a request that changes nothing in the store from a look at it.

        Hosts that wait ask often, and mostly nothing changes: the look needs no lock.
        """
        request = self._tools_wanted
        if request is None or request.losses != self._losses:
            return ()
        self._tools_asked_at = self._supervisor.now()
        if request.is_news:
            return request.asks
        me = self.host().host_id
        try:
            tools = self.store.tools()
            if tools.any_gone or any(tools.is_changed_by(ask, me) for ask in request.asks):
                return request.asks
            self._answer_tools({ask.tool_name: tools.share(ask, me) for ask in request.asks}, tools)
        except StoreUnavailableError:
            raise
        except Exception:
            self._on_tools_failure()
        return ()

    def _answer_tools(self, shares: Mapping[str, ToolShare], tools: SharedTools) -> None:
        self._tools_wanted, self._tools_are_failing = None, False
        self._supervisor.call_soon(self._limiter.on_answer, shares, tools, self._tools_asked_at)

    def _on_tools_failure(self) -> None:
        """Log the present exception, if it is the first one since the last answer."""
        if not self._tools_are_failing:
            logger.exception("the store does not say what tools may start: jobs with a tool_name wait for it")
        self._tools_are_failing = True

    # --- checks ---

    def _check_live_jobs(self) -> None:
        """Collect the progress of running jobs and cancel those that another process asked to cancel."""
        live = self._supervisor.intake.jobs
        now = time.monotonic()
        if live and self._host is not None and now >= self._checked_at + CHECK_INTERVAL:
            self._checked_at = now
            self._pending.collect_progress()
            for job_id in self.store.cancel_requests(self._host.host_id):
                if (job := live.get(job_id)) is not None:
                    self._supervisor.cancel_job(job)

    def _recover_if_due(self) -> None:
        if self._is_recovery_due():
            self._recovered_at = time.monotonic()
            looked_for = list(self._handed_over)
            with contextlib.suppress(ExecutorClosedError):  # It was shut down meanwhile: what is left waits for others.
                self._recover()
            for job in looked_for:
                del self._handed_over[job]

    def _is_recovery_due(self) -> bool:
        if self._supervisor.intake.closed or self.is_stopping():
            return False
        return time.monotonic() >= self._recovered_at + self._recover_every or bool(self._handed_over)


def _outage(what: str, error: Exception) -> StoreUnavailableError:
    """Return an error that keeps this host from its lease as an outage: its turns end, and are repeated, as in one."""
    return error if isinstance(error, StoreUnavailableError) else StoreUnavailableError(f"{what}: {error!r}")
