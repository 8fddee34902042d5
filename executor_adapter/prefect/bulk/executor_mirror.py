"""PrefectMirror shows the jobs of an executor that the program itself uses, and cancels them with their flow run.

    with PrefectMirror() as mirror, JobExecutor(observers=[mirror]) as executor:
        executor.submit(...)
    print(mirror.report())

Inside a flow run the jobs are task runs of that flow run, elsewhere task runs without a flow run. `run_jobs` does all
this for many jobs at once. Jobs of a `job_task` are left out: Prefect's engine drives them, and reports them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable

from prefect.settings import get_current_settings

from executor_adapter.executor import JobExecutor
from executor_adapter.job import TERMINAL, Job, JobStatus, Observer, Transition
from executor_adapter.prefect.cancellation.watcher import flow_run_watcher
from executor_adapter.prefect.mirror.mirror import (
    HURRIED_CLOSE_SECONDS,
    STALL_TIMEOUT,
    MirrorReport,
    TaskRunMirror,
)
from executor_adapter.prefect.mirror.outbox import OutboxFile
from executor_adapter.prefect.mirror.timeline import History
from executor_adapter.prefect.runners.companion import watch_for_cancel
from executor_adapter.supervision.messages import has_receiver


class PrefectMirror(TaskRunMirror):
    """An observer that shows jobs as Prefect task runs; see the module.

    Made in a flow run, it ends its jobs when the flow run is cancelled, and they say so. `history` decides about the
    intermediate states of finished jobs, and of those with more than 50 unsent ones: "auto" skips them while many
    changes are unsent, "full" sends them all, however long that takes, and "final" skips them always. `stall_timeout`
    is how many seconds `drain` and `close` wait without any progress of the server before they give up. `outbox` keeps
    the final states that the server did not get; by default it is a file below PREFECT_HOME.
    """

    def __init__(
        self, *, history: History = "auto", stall_timeout: float = STALL_TIMEOUT, outbox: OutboxFile | None = None
    ) -> None:
        super().__init__(history=history, stall_timeout=stall_timeout, outbox=outbox)
        self._latest: tuple[object, ...] = ()
        """What identifies the latest transition: it comes again where an executor was given this mirror twice."""
        self._live: set[Job] = set()
        """The unfinished jobs of a flow run."""
        self._watch = contextlib.ExitStack()
        if self.flow_run_id is not None:
            self._watch.enter_context(watch_for_cancel(self._cancel_jobs))

    def __call__(self, transition: Transition) -> None:
        """Mirror a job of an observed executor from its submission on, unless a flow run shows it itself."""
        job, before = transition.job, self._latest
        self._latest = job.job_id, transition.status, transition.at
        if self._latest == before or has_receiver(job):
            return  # It is mirrored, or Prefect's engine reports the job, or a `run_jobs`.
        if transition.previous is None and job.job_id not in self._histories:
            self.add_job(job)
        self.enqueue(transition)
        if transition.status in TERMINAL:
            self._live.discard(job)
        elif transition.previous is None and self.flow_run_id is not None:
            self._live.add(job)
            job.live.future.why_cancelled = functools.partial(flow_run_watcher.why_cancelled, self.flow_run_id)
            if self.flow_run_id in flow_run_watcher.cancelled:
                job.live.future.cancel()

    def remove_job(self, job: Job) -> None:
        """Do not mirror a job any more."""
        super().remove_job(job)
        self._live.discard(job)

    def close(self, timeout: float | None = None) -> MirrorReport:
        """Drain, leave the final states that the server did not get in the outbox, and end.

        With a `timeout` in seconds it hurries: only final states are sent, within that time. When another thread calls
        it meanwhile, that makes this call hurry. After an interrupt, all unrecorded final states are left there.
        """
        self._watch.close()
        return super().close(timeout)

    def _cancel_jobs(self) -> None:
        for job in list(self._live):
            if (future := job.live.future) is not None:  # It has none once it has ended.
                future.cancel()


# --- the mirror of a scheduler ---

DRAIN_TIMEOUT = 10.0
"""Seconds for all states when the executor is closed; final states get HURRIED_CLOSE_SECONDS more."""


def make_mirror(observers: Iterable[Observer]) -> PrefectSchedulerMirror | None:
    """Return the mirror of a scheduler's next executor; None if an observer is one, or no API is configured."""
    is_mirrored = any(isinstance(getattr(each, "__self__", each), PrefectMirror) for each in observers)
    return None if is_mirrored or get_current_settings().api.url is None else PrefectSchedulerMirror()


class PrefectSchedulerMirror(PrefectMirror):
    """Mirrors the jobs of one scheduler's executor, as `mirroring.SchedulerMirror` demands.

    Make it in the context whose flow run the task runs belong to. Once it was told to hurry, the executor's end gives
    the server HURRIED_CLOSE_SECONDS.
    """

    def attach(self, executor: JobExecutor) -> None:
        """Mirror each job of this executor until it is closed, and send what an earlier process has left."""
        self._executor = executor
        executor.add_observer(self)
        executor.add_close_callback(self._end)
        self.send_inherited(timeout=0)  # Starts sending, and does not wait.

    def __call__(self, transition: Transition) -> None:
        """Mirror a transition, as an observer of the executor."""
        error = transition.error
        is_cut_off = transition.status is JobStatus.CANCELLED and error is not None and error.shutdown
        if is_cut_off and self._executor.history() is not None:
            self._requeue(transition)
        else:
            super().__call__(transition)

    def _requeue(self, transition: Transition) -> None:
        """Stop mirroring a job that another host will run.

        A running job becomes Pending, unless this executor goes on: then another host has taken the job over already.
        """
        if transition.previous is JobStatus.RUNNING and self._executor.is_shutting_down:
            self.enqueue(transition._replace(status=JobStatus.PENDING, error=None))
        self.remove_job(transition.job)

    def _end(self) -> None:
        if not self._unsent.is_hurried:
            self.drain(DRAIN_TIMEOUT)
        self.close(HURRIED_CLOSE_SECONDS)
