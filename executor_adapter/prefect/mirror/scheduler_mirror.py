"""A scheduler's jobs as task runs: loaded by `executor_adapter.scheduler.mirroring`, by its name.

A job that a scheduler hands over to the next host keeps its task run: it is Pending there until that host runs it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from prefect.settings import get_current_settings

from executor_adapter.executor.executor import JobExecutor
from executor_adapter.job.status import JobStatus
from executor_adapter.job.transition import Observer, Transition
from executor_adapter.persistence.pending_writes import was_cut_off
from executor_adapter.prefect.mirror.mirror import PrefectMirror
from executor_adapter.prefect.mirror.server_api import server_name
from executor_adapter.prefect.mirror.spool import Spool
from executor_adapter.prefect.mirror.timeouts import HURRIED_CLOSE_SECONDS

logger = logging.getLogger("executor_adapter.prefect")

DRAIN_SECONDS = 10.0
"""Time for all states when the executor is closed; final states get HURRIED_CLOSE_SECONDS more."""


def make_mirror(observers: Iterable[Observer], *, always: bool) -> ScheduledMirror | None:
    """The mirror of a scheduler's next executor; None where an observer is one, or no API is configured.

    `always`: without a configured API the embedded server is used, where Prefect's settings allow one.
    """
    if any(isinstance(getattr(observer, "__self__", observer), PrefectMirror) for observer in observers):
        return None
    settings = get_current_settings()
    if settings.api.url is not None or (always and settings.server.ephemeral.enabled):
        return ScheduledMirror()
    if always:
        logger.warning("jobs are not mirrored: set PREFECT_API_URL, or let Prefect have an embedded server")
    return None


class ScheduledMirror:
    """See the module, and `mirroring.SchedulerMirror`. Made in the context whose flow run the task runs belong to."""

    def __init__(self) -> None:
        self._spool = Spool(server_name())
        self._mirror = PrefectMirror(spool=self._spool)
        self._executor: JobExecutor | None = None
        self._hands_over = self._hurries = False

    def attach(self, executor: JobExecutor) -> None:
        """Mirror each job of this executor, and end with it; send what an earlier process kept."""
        self._executor = executor
        self._hands_over = executor.history() is not None
        executor.add_observer(self)
        executor.add_close_callback(self._close)
        if not self._spool.is_empty:
            self._mirror.drain(timeout=0)  # waits for nothing, but begins

    def hurry(self) -> None:
        """Leave the server HURRIED_CLOSE_SECONDS, for final states alone, when the executor is closed."""
        self._hurries = True

    def __call__(self, transition: Transition) -> None:
        """An observer."""
        if self._hands_over and transition.status is JobStatus.CANCELLED and was_cut_off(transition.error):
            self._hand_over(transition)
        else:
            self._mirror(transition)

    def _hand_over(self, transition: Transition) -> None:
        """Say no more of a job that another host is to run, or runs by now: in that case nothing at all."""
        assert self._executor is not None
        if transition.previous is JobStatus.RUNNING and self._executor.is_shutting_down:
            self._mirror.enqueue(transition._replace(status=JobStatus.PENDING, error=None))
        self._mirror.remove_job(transition.job)

    def _close(self) -> None:
        if not self._hurries:
            self._mirror.drain(DRAIN_SECONDS)
        self._mirror.close(HURRIED_CLOSE_SECONDS)
