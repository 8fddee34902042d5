"""Recorder: writes the states of an executor's jobs to its store, on a thread of its own.

    submit ──► prepare                   refuse a job that cannot be stored
    supervisor ──► PendingWrites         append the transition only
    recorder's thread ──► JobStore.write one record for each job that has changed since the last batch

Only callers that ask for it wait for the store (`recorded`, `flush`). While the store cannot be written, jobs continue
and their changes stay pending; past MAX_PENDING_WRITES no new job is accepted. A batch is written at once when the last
one was long ago, and otherwise BATCH_INTERVAL after it, so that many jobs share one transaction.

Each batch renews the host's lease; without batches, the lease is renewed while any job is live. An executor without
live jobs looks for jobs that no host runs, every `recover_every` seconds, and does nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from executor_adapter.exceptions import ExecutorClosedError, QueueFullError
from executor_adapter.job import TERMINAL, Job, Transition
from executor_adapter.persistence.handover import Handover
from executor_adapter.persistence.host_lease import LEASE_SECONDS, HostLease
from executor_adapter.persistence.log_lines import LogLines, start_capturing, stop_capturing
from executor_adapter.persistence.outage import Outage
from executor_adapter.persistence.pending_writes import PendingWrites, WriteBatch
from executor_adapter.persistence.plain_records import write_plain
from executor_adapter.persistence.requests import Request, RequestQueue, WrittenFutures
from executor_adapter.persistence.serialization import StoredCall, function_name, refuse_unstorable_texts, stored_call
from executor_adapter.persistence.tools import ToolRequests
from executor_adapter.store import (
    Host,
    JobRecord,
    JobStore,
    LeaseLostError,
    SignedPickles,
    StoreUnavailableError,
    ToolAsk,
)
from executor_adapter.supervision import Supervisor, ToolRequest

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
SHUTDOWN_TIMEOUT = 30.0
"""Seconds for which a shutdown tries to write what is pending."""


class Recorder:
    """Writes jobs to a store and keeps this executor's lease on it.

    Args:
        store: the store.
        supervisor: reports transitions, and stops the jobs that another host takes over.
        queue: the queue that the jobs belong to.
        lease: the length of the lease, in seconds.
    """

    def __init__(
        self, store: JobStore, supervisor: Supervisor, *, queue: str = "", lease: float = LEASE_SECONDS
    ) -> None:
        self.store = store
        self.queue = queue
        self.pickles: SignedPickles | None = None
        """Signs pickled functions and arguments; None: they are stored as text."""
        intake = supervisor.intake
        self.pending = PendingWrites(
            queue=queue, keeps_jobs=not store.durable, quarantined=intake.quarantined, unwritten=intake.unwritten
        )
        self.recover: Callable[[], object] = lambda: None
        """Takes over jobs that no host runs; called on this thread."""
        self.recover_every: float | None = None
        """Seconds between two recoveries; None: only on request, and after the lease was lost."""
        self._supervisor = supervisor
        self._lease = HostLease(store, lease, supervisor.set_lease)
        self._outage = Outage(store.url)
        self._handover = Handover(supervisor, self.pending)
        self._lock = threading.RLock()
        self._requests = RequestQueue(self._lock)
        self._written = WrittenFutures(self._lock)
        self._tools = ToolRequests(store, supervisor)
        self._wake = threading.Event()
        self._hurry = threading.Event()
        """Cuts the pause between two batches short."""
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._checked_at = 0.0
        self._recovered_at = time.monotonic()
        self._lines = LogLines(supervisor.intake.jobs)
        supervisor.message_listeners.append(self._lines.on_message)
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
            QueueFullError: too many changes wait for a store that cannot be written.
        """
        if len(self.pending) >= MAX_PENDING_WRITES and self._outage.is_on:
            raise QueueFullError(
                f"{self.store.url} cannot be written, and {MAX_PENDING_WRITES} job changes wait for it: "
                "restore the store, or submit later"
            )
        if job.job_id in self._supervisor.intake.quarantined:
            self._forget_if_released(job.job_id)
        if self.store.durable and not driven:
            return stored_call(job, self.pickles)
        if self.store.durable:
            refuse_unstorable_texts(job)
        return StoredCall(function_name(job))

    def _forget_if_released(self, job_id: str) -> None:
        """End the job's quarantine here if another process has released it in the store."""
        with contextlib.suppress(StoreUnavailableError):
            record = self.store.get(job_id)
            if record is not None and record.status in TERMINAL and not record.quarantined:
                self._supervisor.intake.quarantined.pop(job_id, None)

    def recorded(self, job: Job) -> Future[None]:
        """Return a future that resolves once the job is in the store; at once while that cannot be written."""
        with self._lock:
            if self.pending.is_unwritten(job) and not self._outage.is_on and not self._closing.is_set():
                return self._written.add(job)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all changes up to now are in the store; return False after `timeout` seconds."""
        with self._lock:
            if self._closing.is_set() or self.pending.is_empty or not self._supervisor.thread.is_started():
                return self.pending.is_empty
            request = self._requests.add_flush()
        # When the supervisor makes this call, it has reported all jobs that were submitted before.
        self._supervisor.call_soon(self._release_flush, request)
        try:
            request.done.result(timeout)
        except TimeoutError:
            return False
        return True

    def _release_flush(self, request: Request) -> None:
        with self._lock:
            self._requests.release_flush(request)
            self._start()
        self._wake.set()

    def request(self, call: Callable[[], T], *, may_wait: bool) -> Future[T]:
        """Call `call` on the recorder's thread, once everything reported by now is in the store.

        Where the store cannot be written, the future raises StoreUnavailableError, or waits for it if it `may_wait`.

        Raises:
            ExecutorClosedError: the executor is shut down.
        """
        with self._lock:
            if self._closing.is_set():
                raise ExecutorClosedError("the executor is shut down: make another executor")
            done = self._requests.add(call, may_wait=may_wait)
            self._start()
        self._wake.set()
        return done

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="executor-recorder", daemon=True)
            self._thread.start()

    # --- on the supervisor's thread ---

    def ask_for_tools(self, request: ToolRequest) -> None:
        """Get shares of tools for the supervisor's rate limiter."""
        self._tools.receive(request)
        with self._lock:
            self._start()
        self._hurry.set()
        self._wake.set()

    def on_transition(self, transition: Transition) -> None:
        """Receive a transition from the supervisor, and wake the recorder's thread."""
        self.pending.on_transition(transition)
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                with self._lock:
                    self._start()

    def close(self) -> None:
        """Write what is pending and end the lease."""
        with self._lock:
            self._closing.set()
        self._hurry.set()
        self._wake.set()
        stop_capturing(self._lines)
        if self._thread is not None:
            self._thread.join()

    # --- on the recorder's thread ---

    def host(self) -> Host:
        """Return this executor as a host of the store, with its lease begun.

        Raises:
            StoreUnavailableError: it cannot be registered now.
        """
        return self._lease.host()

    def end(self, record: JobRecord) -> None:
        """Record the end of a job that this host has claimed and cannot run.

        Raises:
            StoreUnavailableError, LeaseLostError: it is not recorded.
        """
        self.store.write(self.host().host_id, changed=[record], lease=self._lease.seconds)

    def renew(self) -> None:
        """Write what is pending, and with it renew the lease; this raises what `JobStore.write` raises."""
        self._write(self._next_batch())

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(self._seconds_until_due())
            if self._supervisor.dispatcher.rate_limiter.is_active:
                self._hurry.wait(ASK_DELAY)
            self._wake.clear()
            self._turn()
            self._lease.announce(is_needed=bool(self._supervisor.intake.jobs))
            self._hurry.wait(self._outage.retry_delay if self._outage.is_on else BATCH_INTERVAL)
            self._hurry.clear()
        until = time.monotonic() + SHUTDOWN_TIMEOUT
        while not self._turn() and time.monotonic() < until:
            time.sleep(self._outage.retry_delay)
        self._finish()

    def _seconds_until_due(self) -> float | None:
        if self._outage.is_on:
            return 0.0
        due = []
        if self._supervisor.intake.jobs:
            due += [self._checked_at + CHECK_INTERVAL, self._lease.due_at]
        if self.recover_every is not None:
            due.append(self._recovered_at + self.recover_every)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _turn(self) -> bool:
        """Write and answer all that is due; return whether that has succeeded."""
        requests, began = self._requests.take(), time.monotonic()
        try:
            self.pending.collect()
            # Before the collected transitions, so that a reader who sees a job's end finds its whole log.
            self._lines.write_to(self.store)
            self._write_all()
            self._check_live_jobs()
            self._recover_if_due()
            while requests:
                self._requests.answer(requests.pop(0))
            return True
        except StoreUnavailableError as error:
            self._on_outage(error, began)
        except LeaseLostError:
            self._lease.lose()
            self._tools.on_lease_lost()
            self._handover.after_loss()
            self._wake.set()  # This executor registers as a new host, which answers the requests.
        except Exception:
            logger.exception("the recorder failed in one turn and continues")
        unavailable = f"{self.store.url} cannot be written now" if self._outage.is_on else None
        self._requests.put_back(requests, unavailable=unavailable)
        return False

    def _finish(self) -> None:
        if len(self.pending):
            logger.error("%d jobs could not be recorded: %s cannot be written", len(self.pending), self.store.url)
        self._requests.close()
        self._lease.end()

    # --- writing ---

    def _write_all(self) -> None:
        asks = self._tools.to_write(self.host)
        if asks or self._outage.is_on or self._is_renewal_due():
            self._write(self._next_batch(), asks)
        # Counted now: what becomes due meanwhile is for the next turn.
        for _ in range(-(-len(self.pending) // BATCH_SIZE)):
            self._write(self._next_batch())

    def _next_batch(self, size: int = BATCH_SIZE) -> WriteBatch:
        return self.pending.batch(size, self.host().host_id)

    def _is_renewal_due(self) -> bool:
        # Jobs that are claimed need a lease.
        return self._is_recovery_due() or (bool(self._supervisor.intake.jobs) and self._lease.is_due)

    def _write(self, batch: WriteBatch, asks: Sequence[ToolAsk] = ()) -> None:
        began = self._lease.now()
        try:
            host_id, lease = self.host().host_id, self._lease.seconds
            written = self.store.write(host_id, batch.new, batch.changed, lease=lease, asks=asks)
        except (StoreUnavailableError, LeaseLostError):
            raise
        except Exception:
            self._write_one_by_one(batch)
            return
        self._lease.renewed(began)
        self._mark_written(batch.jobs)
        if written.tools is not None:
            self._tools.answer(written.shares, written.tools)
        if written.taken:
            self._handover.give_away([job for job in batch.jobs if job.job_id in set(written.taken)])

    def _write_one_by_one(self, batch: WriteBatch) -> None:
        """Write the records one by one, and of those that no store can hold the status and the times alone."""
        if len(batch.jobs) > 1:
            for _ in batch.jobs:
                self._write(self._next_batch(1))
        else:
            write_plain(self.store, self.host().host_id, batch, lease=self._lease.seconds)
            self._mark_written(batch.jobs)

    def _mark_written(self, jobs: list[Job]) -> None:
        self.pending.mark_written(jobs)
        self._outage.succeeded()
        self._written.resolve(jobs)

    def _on_outage(self, error: StoreUnavailableError, began: float) -> None:
        if not self._outage.is_on:
            self._tools.on_outage()
        self._outage.failed(error, began)
        self._written.resolve_all()
        if self._lease.is_about_to_expire():
            self._handover.before_expiry(self.store.url, self._lease.now() - self._lease.renewed_at)

    # --- checks ---

    def _check_live_jobs(self) -> None:
        """Collect the progress of running jobs and cancel those that another process asked to cancel."""
        live = self._supervisor.intake.jobs
        now = time.monotonic()
        if live and self._lease.is_registered and now >= self._checked_at + CHECK_INTERVAL:
            self._checked_at = now
            self.pending.collect_progress()
            for job_id in self.store.cancel_requests(self.host().host_id):
                if (job := live.get(job_id)) is not None:
                    self._supervisor.cancel_job(job)

    def _recover_if_due(self) -> None:
        if self._is_recovery_due():
            self._recovered_at = time.monotonic()
            self._handover.recovery_is_due = False
            self.recover()

    def _is_recovery_due(self) -> bool:
        if self._supervisor.intake.closed or self._handover.is_stopping():
            return False
        is_time = self.recover_every is not None and time.monotonic() >= self._recovered_at + self.recover_every
        return is_time or self._handover.recovery_is_due
