"""The mirror of a scheduler's jobs. `executor_adapter.scheduler.mirroring` loads this module by its name.

A job that a scheduler leaves to the next host keeps its task run, which is Pending until that host runs the job.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from prefect.settings import get_current_settings

from executor_adapter.executor import JobExecutor
from executor_adapter.job import JobStatus, Observer, Transition
from executor_adapter.persistence import was_cut_off
from executor_adapter.prefect.mirror.mirror import HURRIED_CLOSE_SECONDS, PrefectMirror

logger = logging.getLogger("executor_adapter.prefect")

DRAIN_TIMEOUT = 10.0
"""Seconds for all states when the executor is closed; final states get HURRIED_CLOSE_SECONDS more."""


def make_mirror(observers: Iterable[Observer], *, always: bool) -> PrefectSchedulerMirror | None:
    """Return the mirror of a scheduler's next executor; None if an observer is one, or no API is configured.

    With `always` and no configured API the embedded server is used, if Prefect's settings allow it.
    """
    if any(isinstance(getattr(observer, "__self__", observer), PrefectMirror) for observer in observers):
        return None
    settings = get_current_settings()
    if settings.api.url is not None or (always and settings.server.ephemeral.enabled):
        return PrefectSchedulerMirror()
    if always:
        logger.warning("jobs are not mirrored: set PREFECT_API_URL, or allow Prefect's embedded server")
    return None


class PrefectSchedulerMirror:
    """Mirrors the jobs of one scheduler's executor, as `mirroring.SchedulerMirror` demands.

    Make it in the context whose flow run the task runs belong to.
    """

    def __init__(self) -> None:
        self._mirror = PrefectMirror()
        self._executor: JobExecutor | None = None
        self._requeues = self._is_hurried = False

    def attach(self, executor: JobExecutor) -> None:
        """Mirror each job of this executor until it is closed, and send what an earlier process has left."""
        self._executor = executor
        self._requeues = executor.history() is not None
        executor.add_observer(self)
        executor.add_close_callback(self._close)
        self._mirror.send_inherited(timeout=0)  # Starts sending, and does not wait.

    def hurry(self) -> None:
        """Send only final states when the executor is closed, within HURRIED_CLOSE_SECONDS."""
        self._is_hurried = True

    def __call__(self, transition: Transition) -> None:
        """Mirror a transition, as an observer of the executor."""
        if self._requeues and transition.status is JobStatus.CANCELLED and was_cut_off(transition.error):
            self._requeue(transition)
        else:
            self._mirror(transition)

    def _requeue(self, transition: Transition) -> None:
        """Stop mirroring a job that another host will run.

        A running job becomes Pending, unless this executor goes on: then another host has taken the job over already.
        """
        assert self._executor is not None
        if transition.previous is JobStatus.RUNNING and self._executor.is_shutting_down:
            self._mirror.enqueue(transition._replace(status=JobStatus.PENDING, error=None))
        self._mirror.remove_job(transition.job)

    def _close(self) -> None:
        if not self._is_hurried:
            self._mirror.drain(DRAIN_TIMEOUT)
        self._mirror.close(HURRIED_CLOSE_SECONDS)
