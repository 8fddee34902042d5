"""Persistence of one executor: its store, the recorder that writes to it, and the recovery of jobs that no host runs.

JobPersistence   what the executor calls: admit, recover, release, history
Recorder         writes transitions in batches and answers requests, on a thread of its own
PendingWrites    what is not written yet
Lease            this executor's claim on its jobs
Recovery         claims jobs that no host runs
QueueHistory     reads the jobs of one queue, for event loops
"""

from __future__ import annotations

import time
from collections.abc import Callable

from executor_adapter.config import StoreSettings
from executor_adapter.exceptions import ExecutorClosedError
from executor_adapter.job import Job
from executor_adapter.persistence.history import QueueHistory
from executor_adapter.persistence.recorder import Recorder
from executor_adapter.persistence.recovery import Recovery
from executor_adapter.persistence.stored_functions import StoredFunctions
from executor_adapter.store import JobStore, SignedPickles, open_store, signed_pickles
from executor_adapter.supervision import JobFuture, Supervisor

DYING_HOST_TIMEOUT = 10.0
"""Seconds that a recovery waits for dying hosts; a guardian has killed all its workers within five."""
DYING_HOST_INTERVAL = 0.02
"""Seconds between two looks at them."""


class JobPersistence:
    """Keeps an executor's jobs in a store, and recovers jobs from it.

    Args:
        store: a store, which its owner closes, or the URL of one, which is closed with the executor.
        supervisor: the executor's.
        settings: the section `store` of the settings.
        queue: the queue that the executor's jobs belong to.
        requeue_on_shutdown: whether jobs that a shutdown cuts off stay PENDING in the store, for the next host.
        readmit: submits a recovered job to the executor, given the seconds since it was created.
        lack_of_pool: returns in words what a pool needs and is not here.
    """

    def __init__(
        self,
        store: JobStore | str,
        supervisor: Supervisor,
        settings: StoreSettings,
        *,
        queue: str,
        requeue_on_shutdown: bool,
        readmit: Callable[[Job, float], object],
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
        self._live_jobs = supervisor.intake.jobs
        self.recorder = Recorder(
            self.store,
            supervisor,
            queue=queue,
            lease=settings.lease,
            pickles=pickles,
            requeue_on_shutdown=requeue_on_shutdown and self.store.durable,
            recover=lambda: self._recovery.run() if self.store.durable else None,
            recover_every=settings.recover_every if self.store.durable else None,
        )
        self._recovery = Recovery(
            self.recorder,
            self._live_jobs,
            supervisor.intake.quarantined,
            readmit,
            self._functions,
            lack_of_pool,
            supervisor.dispatcher.resources.lack_of,
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

    def admit(self, job: Job, admit: Callable[..., JobFuture], *, driven: bool = False) -> JobFuture:
        """Call `admit(stored=...)`, which submits the job, with what the store needs to record it.

        Raises:
            InvalidJobError: The job cannot be stored; the message names the reason and the fix.
            QueueFullError: too many changes wait for a store that cannot be written.
        """
        future = admit(stored=self.recorder.prepare(job, driven=driven))
        if future.job is job and self.store.durable:
            self._functions.add(job.function)
        return future

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
            look_again = any(host.is_dying for host in self.store.hosts()) and time.monotonic() < until
            recovered += self.recorder.request(self._recovery.run).result()
            if not look_again:
                return recovered
            time.sleep(DYING_HOST_INTERVAL)

    def history(self) -> QueueHistory | None:
        """Return what the store knows of this queue's jobs; None where the store does not outlive the program."""
        if not self.store.durable:
            return None
        return QueueHistory(self.store, self.recorder.queue, self.recorder, self._live_jobs, self._functions)

    def release(self, job_id: str) -> bool:
        """End the job's quarantine in the store; False where no quarantined job has this id.

        Raises:
            StoreUnavailableError: the store cannot be used now.
        """
        try:
            return self.recorder.request(lambda: self.store.release(job_id)).result()
        except ExecutorClosedError:
            return self.store.release(job_id)
