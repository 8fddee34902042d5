"""The recorder: tells a store what becomes of an executor's jobs, on a thread of its own.

    submit ──► take              is it storable?
    supervisor ──► journal       appended, no more
    thread ──► JobStore.write    what has changed since the last batch: one row a job

Nothing waits for the store but who asks to (`recorded`, `flush`). While it cannot be written jobs go on: what is to be
recorded stays in the journal and is tried again; past MOST_KEPT jobs no new one is taken in. A batch goes out at once
when the last was long ago, and otherwise PACE seconds after it, so that many jobs share one transaction.

The host's lease is renewed by each batch, and without one while any job is live. An executor without live jobs looks
for jobs that nobody runs, every `recover_every` seconds, and does nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from executor_adapter.exceptions import ExecutorClosedError, QueueFullError
from executor_adapter.job.model import TERMINAL, Job, Transition
from executor_adapter.persistence.log_lines import LogLines, listen, stop_listening
from executor_adapter.persistence.pending_writes import Batch, Journal
from executor_adapter.persistence.serialization import StoredCall, refuse_unstorable_texts, shown_function, stored_call
from executor_adapter.store.base import JobRecord, JobStore, LeaseLost, StoreUnavailable
from executor_adapter.store.host import Host, forget, new_host

if TYPE_CHECKING:
    from executor_adapter.supervision.supervisor import Supervisor

logger = logging.getLogger("executor_adapter.store")

T = TypeVar("T")

LEASE = 60.0
"""Seconds without a sign of life after which a host on another machine counts as gone."""
PACE = 0.02
BATCH = 500
"""Jobs that one transaction writes."""
LOOK_AROUND = 1.0
"""Seconds between looks at what running jobs say of their progress, and at whose end was asked for."""
MOST_KEPT = 100_000
"""Changes of jobs in memory while the store cannot be written, past which no job is taken in."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between tries while the store cannot be written."""
LAST_WORDS = 30.0
"""Seconds for which a shutdown tries to record what has not been."""


class _Request(NamedTuple):
    """What another thread wants done here once all that was told before is written."""

    call: Callable[[], Any]
    done: Future[Any]
    may_wait: bool
    """Also while the store cannot be written; else that is said at once."""


class Recorder:
    """See the module. `supervisor` tells it of transitions, and is told which jobs to let go of."""

    def __init__(self, store: JobStore, supervisor: Supervisor, *, queue: str = "", lease: float = LEASE) -> None:
        self.store = store
        self.queue = queue
        self.journal = Journal(queue=queue, keeps_jobs=not store.durable, quarantined=supervisor.intake.quarantined)
        self.recover: Callable[[], object] = lambda: None
        """Looks for jobs that nobody runs; called on this thread."""
        self.recover_every: float | None = None
        """Seconds between such looks; None: only when asked to, and after a lease ran out."""
        self._supervisor = supervisor
        self._lease = lease
        self._host: Host | None = None
        self._awaited: dict[Job, Future[None]] = {}
        self._requests: list[_Request] = []
        self._flushes: list[_Request] = []
        """Requests that the supervisor has yet to come to."""
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._down_since: float | None = None
        self._pause = FIRST_PAUSE
        self._lease_ran_out = False
        self._let_go_of: list[Job] = []
        """Jobs that others may run, and of which something may still run here."""
        self._renewed_at = self._looked_at = 0.0
        self._recovered_at = time.monotonic()
        self.lines = LogLines(supervisor.intake.jobs)
        supervisor.on_said = self.lines.on_message
        listen(self.lines)
        supervisor.ledger.observers.insert(0, self.tell)
        supervisor.on_closed.append(self.close)

    # --- from submitting threads ---

    def take(self, job: Job, *, driven: bool = False) -> None:
        """Prepare to record a job that is about to be submitted; `driven`: nobody is to run it again from the store.

        Raises:
            InvalidJobError: it cannot be stored; the message says why and the way out.
            QueueFullError: the store has been away for too long.
        """
        if len(self.journal) >= MOST_KEPT and self._down_since is not None:
            raise QueueFullError(
                f"{self.store.url} cannot be written, and {MOST_KEPT} changes of jobs wait for it: mend it, or wait"
            )
        if job.job_id in self._supervisor.intake.quarantined:
            self._forget_if_released(job.job_id)
        self.journal.calls[job] = self._stored(job, driven)

    def _stored(self, job: Job, driven: bool) -> StoredCall:
        if self.store.durable and not driven:
            return stored_call(job, pickle_arguments=self.store.pickle_arguments)
        if self.store.durable:
            refuse_unstorable_texts(job)
        return StoredCall(shown_function(job))

    def _forget_if_released(self, job_id: str) -> None:
        """Another process may have released it."""
        with contextlib.suppress(StoreUnavailable):
            record = self.store.get(job_id)
            if record is not None and record.status in TERMINAL and not record.quarantined:
                self._supervisor.intake.quarantined.pop(job_id, None)

    def drop(self, job: Job) -> None:
        """It was not submitted after all."""
        self.journal.calls.pop(job, None)

    def recorded(self, job: Job) -> Future[None]:
        """Resolves when the job is in the store; at once while the store cannot be written."""
        done: Future[None] = Future()
        with self._lock:
            if job in self.journal.calls and self._down_since is None and not self._closing.is_set():
                return self._awaited.setdefault(job, done)
        done.set_result(None)
        return done

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what became of jobs by now, and what was submitted, is in the store; False where it is not within
        `timeout` seconds."""
        request = _Request(lambda: None, Future(), may_wait=True)
        with self._lock:
            if self._closing.is_set() or self._is_all_written() or not self._supervisor.is_started():
                return self._is_all_written()
            self._flushes.append(request)
        # Through the supervisor's inbox: it has told of what was submitted before when it comes to this.
        self._supervisor.call_soon(self._flush_now, request)
        try:
            request.done.result(timeout)
        except TimeoutError:
            return False
        return True

    def _is_all_written(self) -> bool:
        return not len(self.journal) and not self.journal.calls

    def _flush_now(self, request: _Request) -> None:
        with self._lock:
            self._flushes.remove(request)
            self._requests.append(request)
            self._start()
        self._wake.set()

    def ask(self, call: Callable[[], T], *, may_wait: bool) -> Future[T]:
        """Have `call` called on this thread once all that was told so far is in the store.

        The future raises StoreUnavailable where it cannot be written; with `may_wait` it waits for it.
        """
        request = _Request(call, Future(), may_wait)
        with self._lock:
            if self._closing.is_set():
                raise ExecutorClosedError("the executor is shut down: make another")
            self._requests.append(request)
            self._start()
        self._wake.set()
        return request.done

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="executor-recorder", daemon=True)
            self._thread.start()

    # --- from the supervisor's thread ---

    def tell(self, transition: Transition) -> None:
        self.journal.tell(transition)
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                with self._lock:
                    self._start()

    def close(self) -> None:
        """Record what is left and end the lease."""
        with self._lock:
            self._closing.set()
        self._wake.set()
        stop_listening(self.lines)
        if self._thread is not None:
            self._thread.join()

    # --- the recorder's thread ---

    def host(self) -> Host:
        """This executor as others see it, its lease begun.

        Raises:
            StoreUnavailable
        """
        if self._host is None:
            began = time.monotonic()
            host = new_host()
            try:
                self.store.register(host, lease=self._lease)
            except BaseException:
                forget(host)
                raise
            self._host, self._renewed_at = host, began
        return self._host

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(self._time_to_sleep())
            self._wake.clear()
            self._turn()
            self._closing.wait(self._pause if self._down_since is not None else PACE)
        until = time.monotonic() + LAST_WORDS
        while not self._turn() and time.monotonic() < until:
            time.sleep(self._pause)
        self._leave()

    def _time_to_sleep(self) -> float | None:
        if self._down_since is not None:
            return 0.0
        due = []
        if self._supervisor.intake.jobs:
            due += [self._looked_at + LOOK_AROUND, self._renewed_at + self._lease / 4]
        if self.recover_every is not None:
            due.append(self._recovered_at + self.recover_every)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _turn(self) -> bool:
        """Whether all that had been told by then is in the store now."""
        with self._lock:
            requests, self._requests = self._requests, []
        try:
            self.journal.gather()
            self.lines.write_to(self.store)  # before the ends gathered: who sees one finds the whole log
            self._write_all()
            self._look_around()
            self._recover_if_due()
            while requests:
                self._answer(requests.pop(0))
            return True
        except StoreUnavailable as error:
            self._cannot_write(error)
        except LeaseLost:
            self._lose_lease()
        except Exception:
            logger.exception("the recorder failed; it goes on")
        self._put_off(requests)
        return False

    def _answer(self, request: _Request) -> None:
        try:
            request.done.set_result(request.call())
        except LeaseLost:
            self._requests.append(request)
            raise
        except Exception as error:
            request.done.set_exception(error)

    def _put_off(self, requests: list[_Request]) -> None:
        with self._lock:
            waiting = [request for request in requests if request.may_wait or self._down_since is None]
            self._requests = waiting + self._requests
        for request in requests:
            if request not in waiting:
                request.done.set_exception(StoreUnavailable(f"{self.store.url} cannot be written now"))

    # --- writing ---

    def _write_all(self) -> None:
        if self._down_since is not None or self._is_renewal_due():
            self._write(self.journal.batch(BATCH, self.host().host_id))
        for _ in range(-(-len(self.journal) // BATCH)):  # what is told meanwhile is for the next turn
            self._write(self.journal.batch(BATCH, self.host().host_id))

    def _is_renewal_due(self) -> bool:
        if self._is_recovery_due():  # what is claimed is to be held
            return True
        return bool(self._supervisor.intake.jobs) and time.monotonic() >= self._renewed_at + self._lease / 4

    def _write(self, batch: Batch) -> None:
        began = time.monotonic()
        try:
            taken = self.store.write(self.host().host_id, batch.new, batch.changed, lease=self._lease)
        except (StoreUnavailable, LeaseLost):
            raise
        except Exception:
            self._leave_out_of(batch)
            return
        self._renewed_at = began
        self._written(batch.jobs)
        if taken:
            self._give_away([job for job in batch.jobs if job.job_id in set(taken)])

    def _leave_out_of(self, batch: Batch) -> None:
        """Something in the batch cannot be written, now or ever: write all else of it."""
        if len(batch.jobs) == 1:
            job_id = batch.jobs[0].job_id
            logger.exception("what became of a job cannot be recorded", extra={"job_id": job_id})
            self._written(batch.jobs)
            return
        for _ in batch.jobs:
            self._write(self.journal.batch(1, self.host().host_id))

    def end(self, record: JobRecord) -> None:
        """Record the end of a job that this host took over and cannot run."""
        self.store.write(self.host().host_id, changed=[record], lease=self._lease)

    def _written(self, jobs: list[Job]) -> None:
        self.journal.written(jobs)
        if self._down_since is not None:
            away = time.monotonic() - self._down_since
            logger.warning("%s can be written again after %.1f s: nothing is lost", self.store.url, away)
            self._down_since, self._pause = None, FIRST_PAUSE
        with self._lock:
            recorded = [self._awaited.pop(job) for job in jobs if job in self._awaited] if self._awaited else []
        for done in recorded:
            done.set_result(None)

    def _cannot_write(self, error: StoreUnavailable) -> None:
        if self._down_since is None:
            self._down_since = time.monotonic()
            logger.error(
                "%s cannot be written: %s: jobs go on, and what becomes of them is kept in memory until it can",
                self.store.url,
                error,
            )
            with self._lock:
                given_up, self._awaited = self._awaited, {}
            for done in given_up.values():
                done.set_result(None)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if self._is_known_by_lease() and time.monotonic() > self._renewed_at + self._lease * 5 / 6:
            self._let_lease_go()

    def _is_known_by_lease(self) -> bool:
        """Whether others may take this host for gone though it lives."""
        return self._host is not None and (self.store.shared or not self._host.presence)

    # --- looking around ---

    def _look_around(self) -> None:
        now = time.monotonic()
        if self._supervisor.intake.jobs and self._host is not None and now >= self._looked_at + LOOK_AROUND:
            self._looked_at = now
            self.journal.note_progress()
            for job_id in self.store.cancel_requests(self._host.host_id):
                if (job := self._supervisor.intake.jobs.get(job_id)) is not None:
                    self._supervisor.cancel(job)

    def _recover_if_due(self) -> None:
        if self._is_recovery_due():
            self._recovered_at = time.monotonic()
            self._lease_ran_out = False
            self.recover()

    def _is_recovery_due(self) -> bool:
        if self._supervisor.intake.closed or self._some_are_ending():
            return False
        is_time = self.recover_every is not None and time.monotonic() >= self._recovered_at + self.recover_every
        return is_time or self._lease_ran_out

    def _some_are_ending(self) -> bool:
        """Whether of a job that is no longer this host's something still runs here: it might be claimed, and not be
        taken in beside itself."""
        live = self._supervisor.intake.jobs
        self._let_go_of = [job for job in self._let_go_of if live.get(job.job_id) is job]
        return bool(self._let_go_of)

    # --- the lease ---

    def _let_lease_go(self) -> None:
        """Others may take over soon, and this host would not know: end its jobs in time, for whoever finds them."""
        known = self.journal.known_to_store(list(self._supervisor.intake.jobs.values()))
        if known and not self._lease_ran_out:
            self._lease_ran_out = True
            logger.error(
                "the lease on %s runs out: %d jobs are ended here, to be run again", self.store.url, len(known)
            )
            self.journal.hand_over(known)
            self._let_go(known)

    def _lose_lease(self) -> None:
        """Another host has taken what was this one's."""
        if self._host is not None:
            forget(self._host)
            self._host = None
        if known := self.journal.known_to_store(list(self._supervisor.intake.jobs.values())):
            self._lease_ran_out = True  # nobody may have taken them
            self._give_away(known)
        self._wake.set()  # for what is asked of the host that this is from now on

    def _give_away(self, jobs: list[Job]) -> None:
        ended = self.journal.disown(jobs)
        live = [job for job in jobs if job.status not in TERMINAL]
        logger.warning(
            "%d jobs are another host's by now: %d of them are ended here, %d had ended here and may run twice",
            len(jobs),
            len(live),
            ended,
        )
        self._let_go(live)

    def _let_go(self, jobs: list[Job]) -> None:
        self._let_go_of += jobs
        for job in jobs:
            self._supervisor.let_go(job)

    def _leave(self) -> None:
        if len(self.journal):
            logger.error("%d jobs could not be recorded: %s cannot be written", len(self.journal), self.store.url)
        for request in self._flushes:
            request.done.set_result(None)
        for request in self._requests:
            request.done.set_exception(ExecutorClosedError("the executor is shut down"))
        if self._host is not None:
            forget(self._host)
            with contextlib.suppress(StoreUnavailable):
                self.store.leave(self._host.host_id)
