"""Persistence of one executor: its store, the recorder that writes to it, and the recovery of jobs that no host runs.

JobPersistence   what the executor calls: prepare, recover, release, history; claims jobs that no host runs
Recorder         writes transitions in batches and answers requests, on a thread of its own
PendingWrites    what is not written yet
Lease            this executor's claim on its jobs
QueueHistory     reads the jobs of one queue, for event loops

A job of a host that has died runs again at least once: the attempt that the death interrupted counts as one attempt,
and another one follows regardless of its policy. A function that ran inside the host's own process, in a thread or as a
coroutine, may have killed the host: such a death counts as a crash of the job, and past `crash_attempts` the job is
quarantined.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from executor_adapter.config import StoreSettings
from executor_adapter.exceptions import ExecutorClosedError, InvalidJobError, JobSerializationError
from executor_adapter.exceptions.display import repr_of, text_of
from executor_adapter.job import (
    LEASING_POOLS,
    MAX_QUARANTINED,
    PROCESS_POOLS,
    Attempt,
    Job,
    JobStatus,
    checked_resources,
)
from executor_adapter.persistence.history import QueueHistory
from executor_adapter.persistence.recorder import Recorder
from executor_adapter.persistence.serialization import StoredCall
from executor_adapter.persistence.stored_functions import StoredFunctions
from executor_adapter.store import (
    JobFilter,
    JobRecord,
    JobStore,
    LeaseLostError,
    SignedPickles,
    StoreUnavailableError,
    Unpickle,
    given_fields,
    open_store,
    readable_call,
    restore,
    signed_pickles,
)
from executor_adapter.supervision.supervisor import Supervisor

logger = logging.getLogger("executor_adapter.store")

DYING_HOST_TIMEOUT = 10.0
"""Seconds that a recovery waits for dying hosts; a guardian has killed all its workers within five."""
DYING_HOST_INTERVAL = 0.02
"""Seconds between two looks at them."""
CLAIM_SIZE = 100
"""Jobs that are claimed in one transaction."""
MAX_REFUSALS_LOGGED = 10_000
"""Refused jobs that are remembered, so that each is logged once."""


class JobPersistence:
    """Keeps an executor's jobs in a store, and recovers jobs from it.

    Args:
        store: a store, which its owner closes, or the URL of one, which is closed with the executor.
        supervisor: the executor's.
        settings: the section `store` of the settings.
        queue: the queue that the executor's jobs belong to.
        requeue_on_shutdown: whether jobs that a shutdown cuts off stay PENDING in the store, for the next host.
        readmit: submits a recovered job to the executor, as `Supervisor.admit` does; `waited` is given.
        lack_of_pool: returns in words what a pool needs and is not here; jobs of such pools are left in the store, for
            a host that has it.
    """

    def __init__(
        self,
        store: JobStore | str,
        supervisor: Supervisor,
        settings: StoreSettings,
        *,
        queue: str,
        requeue_on_shutdown: bool,
        readmit: Callable[..., object],
        lack_of_pool: Callable[[str], str | None],
    ) -> None:
        self.store = open_store(store) if isinstance(store, str) else store
        try:
            pickles = self._pickles(settings)
        except BaseException:
            if isinstance(store, str):
                self.store.close()
            raise
        self._functions = StoredFunctions(settings.functions, pickles)
        self._intake = supervisor.intake
        self._readmit = readmit
        self._lack_of_pool = lack_of_pool
        self._lack_of = supervisor.dispatcher.resources.machine.lack_of
        self._refused: dict[str, None] = {}
        """The ids of jobs whose refusal was logged, the newest."""
        self._claimed: set[str] = set()
        """The ids of jobs that the store has given to this host, as far as it knows, and that do not run here yet."""
        self.recorder = Recorder(
            self.store,
            supervisor,
            queue=queue,
            settings=settings,
            pickles=pickles,
            requeue_on_shutdown=requeue_on_shutdown,
            recover=self._claim_all,
        )
        if self.store.shares_tools and not supervisor.thread.is_inline:
            supervisor.dispatcher.rate_limiter.share(self.recorder.ask_for_tools)
        if isinstance(store, str):
            supervisor.thread.on_closed.append(self.store.close)

    def _pickles(self, settings: StoreSettings) -> SignedPickles | None:
        """Return what signs and loads pickles; None where no store outlives the program, or none may hold pickles.

        Raises:
            ConfigurationError: the key cannot be used; the message says why.
        """
        if not (self.store.durable and settings.pickle_arguments):
            return None
        return signed_pickles(None if settings.pickle_key is None else settings.pickle_key.get_secret_value())

    def prepare(self, job: Job, *, driven: bool = False) -> StoredCall:
        """Return what the store needs to record a job that is about to be submitted; see `Recorder.prepare`."""
        stored = self.recorder.prepare(job, driven=driven)
        if self.store.durable:
            self._functions.add(job.function)
        return stored

    def recover(self) -> list[Job]:
        """Claim the jobs of this queue that no host runs; return those that run here from now on.

        Waits for dying hosts of this machine: a program that is restarted at once after a SIGKILL finds workers of its
        former process that are about to be killed.

        Raises:
            StoreUnavailableError: the store cannot be used now.
        """
        if not self.store.durable:
            return []
        recovered: list[Job] = []
        until = time.monotonic() + DYING_HOST_TIMEOUT
        while True:
            look_again = any(host.is_dying for host in self.recorder.request(self.store.hosts).result())
            recovered += self.recorder.request(self._claim_all).result()
            if not look_again or time.monotonic() > until:
                return recovered
            time.sleep(DYING_HOST_INTERVAL)

    def history(self) -> QueueHistory | None:
        """Return what the store knows of this queue's jobs; None where the store does not outlive the program."""
        if not self.store.durable:
            return None
        return QueueHistory(self.recorder, self._intake.jobs, self._functions)

    def release(self, job_id: str) -> bool:
        """End the job's quarantine in the store; False where no quarantined job has this id.

        Raises:
            StoreUnavailableError: the store cannot be used now.
            ExecutorClosedError: the executor is shut down.
        """
        return self.recorder.request(lambda: self.store.release(job_id)).result()

    # --- on the recorder's thread ---

    def _claim_all(self) -> list[Job]:
        """Claim the jobs that no host runs; return those that run here from now on.

        Raises:
            StoreUnavailableError, LeaseLostError: the jobs claimed by then run here; the others wait for the next call.
        """
        if not self.store.durable or self.recorder.is_stopping():
            return []
        host = self.recorder.host()
        self._load_quarantined()
        recovered: list[Job] = []
        claimed: list[JobRecord] | None = None
        while claimed is None or len(claimed) >= CLAIM_SIZE or self._functions.import_unknown():
            claimed = self.store.claim(
                host, queue=self.recorder.queue, limit=CLAIM_SIZE, refuse=self._refuse, again=tuple(self._claimed)
            )
            self._claimed = {record.job_id for record in claimed}
            for record in claimed:
                recovered += self._run_again(record)
                self._claimed.discard(record.job_id)
        if recovered:
            logger.info("recovered %d jobs that no host ran", len(recovered))
        return recovered

    def _refuse(self, record: JobRecord) -> str | None:
        reason = self._functions.refusal(record, may_import=False)
        if reason is None:  # "" is a reason too: the function is not known yet.
            reason = self._lack_for(record)
        if reason is None:
            self._claimed.add(record.job_id)  # Noted before the claim is made, since its answer may be lost.
        elif reason and record.job_id not in self._refused:
            if len(self._refused) >= MAX_REFUSALS_LOGGED:
                del self._refused[next(iter(self._refused))]
            self._refused[record.job_id] = None
            message = "job %s of the store is left there and does not run: %s"
            logger.warning(message, record.job_id, reason, extra={"job_id": record.job_id})
        return reason

    def _lack_for(self, record: JobRecord) -> str | None:
        """Return in words what the job needs and is not here; None for nothing, or where the row makes no sense."""
        pool = _pool_of(record)
        try:
            resources = None if pool in LEASING_POOLS else checked_resources(readable_call(record).get("resources"))
        except ValueError:
            resources = None
        return self._lack_of_pool(pool) or (self._lack_of(resources) if resources else None)

    def _load_quarantined(self) -> None:
        wanted = JobFilter(queue=self.recorder.queue, quarantined=True)
        for record in reversed(self.store.find(wanted, limit=MAX_QUARANTINED).records):
            if record.job_id not in self._intake.quarantined:
                self._intake.quarantined[record.job_id] = self._functions.to_job(record)

    def _run_again(self, record: JobRecord) -> list[Job]:
        if record.job_id in self._intake.jobs:
            return []  # The claim made it this host's again, and it runs here already.
        try:
            record = _with_attempt_cut_off(record)
            job = _pending_job(record, self._functions.unpickle)
            if record.crashes > 0 and record.crashes > job.policy.crash_attempts:
                why = f"its host died, or lost its lease, {record.crashes} times while it ran"
                self._end(record, "WORKER_CRASHED", why)
                self._intake.quarantined[record.job_id] = self._functions.to_job(record)
                return []
            self._readmit(job, waited=max(0.0, time.time() - record.created_at))
        except (StoreUnavailableError, LeaseLostError, ExecutorClosedError):
            raise
        except BaseException as error:  # One job must not keep the others from running.
            explained = isinstance(error, (InvalidJobError, JobSerializationError, ValueError))
            why = text_of(error) if explained else repr_of(error)
            code = "CONFIGURATION_ERROR" if record.unreadable is None else "DATA_ERROR"
            self._end(record, code, f"its host has gone, and it cannot run here: {why}")
            return []
        return [job]

    def _end(self, record: JobRecord, code: str, message: str) -> None:
        """Record that the job has failed; one that has crashed too often is quarantined."""
        logger.error("job %s: %s", record.job_id, message, extra={"job_id": record.job_id})
        self.recorder.write_end(
            replace(
                record,
                status=JobStatus.FAILED,
                completed_at=time.time(),
                error_code=code,
                error_message=message,
                quarantined=code == "WORKER_CRASHED",
            )
        )


def _pool_of(record: JobRecord) -> str:
    """Return the name of the job's pool; "auto" where it was driven from outside, or the row makes no sense."""
    return str(readable_call(record).get("pool", "auto"))


def _with_attempt_cut_off(record: JobRecord) -> JobRecord:
    """Return the record with the attempt that ran when its host died as a finished one."""
    if record.status is not JobStatus.RUNNING:
        return record
    pool = _pool_of(record)
    attempt = Attempt(
        number=record.attempt,
        pool=pool,
        pid=None,
        queue_seconds=0.0,
        run_seconds=0.0,
        error_code="WORKER_CRASHED",
        error_message="its host died, or lost its lease",
    )
    crashes = record.crashes + (pool not in PROCESS_POOLS)
    return replace(record, attempts=(*record.attempts, attempt), crashes=crashes)


def _pending_job(record: JobRecord, unpickle: Unpickle | None) -> Job:
    """Return the job as PENDING, ready to be submitted.

    Raises:
        ValueError: its function is not stored or cannot be imported here, or the job could never run.
    """
    Job(**given_fields(record, unpickle))
    if record.attempt == 0:  # What may be shown there is why another host, or this one before, left it.
        record = replace(record, error_code=None, error_message=None)
    job = restore(replace(record, status=JobStatus.PENDING, progress=None), unpickle)
    if record.started_at is not None:
        job.queue_timeout = None  # Its first attempt did start in time.
    return job
