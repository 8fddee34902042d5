"""An executor's memory: its store, the recorder that tells it of jobs, and the recovery of those that nobody runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from executor_adapter.exceptions import ExecutorClosedError
from executor_adapter.job.model import Job
from executor_adapter.persistence.recorder import Recorder
from executor_adapter.persistence.recovery import Recovery
from executor_adapter.scheduler.job_queue import StoredPast
from executor_adapter.store import open_store
from executor_adapter.store.base import JobStore

if TYPE_CHECKING:
    from executor_adapter.executor.executor import JobExecutor
    from executor_adapter.supervision.futures import JobFuture

DYING_PATIENCE = 10.0
"""Seconds for hosts that are dying; a guardian has killed all within five."""
DYING_STEP = 0.02


class Memory:
    """See the module. A store that was given by its URL is closed with the executor; another is its owner's."""

    def __init__(self, store: JobStore | str, executor: JobExecutor, *, queue: str, hands_over: bool) -> None:
        settings, supervisor = executor.config.store, executor._supervisor
        self.store = open_store(store) if isinstance(store, str) else store
        self.store.pickle_arguments |= settings.pickle_arguments
        self.recorder = Recorder(self.store, supervisor, queue=queue, lease=settings.lease)
        self.recorder.journal.hands_over = hands_over and self.store.durable
        self._live = supervisor.intake.jobs
        self._quarantined = supervisor.intake.quarantined
        self._recovery = Recovery(
            self.recorder, self._live, self._quarantined, lambda job, waited: executor._admit(job, waited=waited)
        )
        if self.store.durable:
            self.recorder.recover = self._recovery
            self.recorder.recover_every = settings.recover_every
        if isinstance(store, str):
            supervisor.on_closed.append(self.store.close)

    def admit(self, job: Job, admit: Callable[[], JobFuture], *, driven: bool = False) -> JobFuture:
        """`admit()`, and have the job recorded, unless it is refused or a live twin taken for it.

        Raises:
            InvalidJobError: it cannot be stored; the message says why and the way out.
            QueueFullError: the store has been away for too long.
        """
        self.recorder.take(job, driven=driven)
        try:
            future = admit()
        except BaseException:
            self.recorder.drop(job)
            raise
        if future.job is not job:
            self.recorder.drop(job)
        return future

    def recover(self) -> list[Job]:
        """Take over what nobody runs. Waits for hosts of this machine that are dying: who starts again at once after a
        SIGKILL finds workers of its former self that are about to be killed.

        Raises:
            StoreUnavailable
        """
        if not self.store.durable:
            return []
        recovered: list[Job] = []
        until = time.monotonic() + DYING_PATIENCE
        while True:
            look_again = self.store.any_host_is_dying() and time.monotonic() < until
            recovered += self.recorder.ask(self._recovery, may_wait=False).result()
            if not look_again:
                return recovered
            time.sleep(DYING_STEP)

    def past(self) -> StoredPast | None:
        recorder = self.recorder
        return StoredPast(self.store, recorder.queue, recorder, self._live) if self.store.durable else None

    def release(self, job_id: str) -> bool:
        """
        Raises:
            StoreUnavailable
        """
        try:
            return self.recorder.ask(lambda: self.store.release(job_id), may_wait=False).result()
        except ExecutorClosedError:
            return self.store.release(job_id)
