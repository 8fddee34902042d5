"""PrefectMirror shows an executor's jobs as task runs in Prefect, with every state of them.

    executor ──transition──► mirror ──event──► sender ──paced──► server
                                                  │ what cannot be sent now
                                                  └──► outbox ──► later, or the next mirror

Attach it to an executor, and close it at the end:

    with PrefectMirror() as mirror, JobExecutor(observers=[mirror]) as executor:
        executor.submit(...)
    print(mirror.report())

Inside a flow run the jobs are task runs of that flow run, elsewhere task runs without a flow run. `run_jobs` does all
this for many jobs at once. Jobs of a `job_task` are left out: Prefect's engine drives them, and reports them.

The mirror takes no time of the executor's: a thread of its own sends events as fast as the server records them. While
it is behind, it skips intermediate states of finished jobs, depending on `history`. The final state, run count and
times of each job always reach the server. If they truly cannot, the report names how many jobs are missing, and which.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from executor_adapter.job import Job, Transition
from executor_adapter.prefect.mirror.flow_run_facts import current_flow_run_id
from executor_adapter.prefect.mirror.outbox import OutboxFile
from executor_adapter.prefect.mirror.report import MirrorReport, WaitNotice
from executor_adapter.prefect.mirror.sender_thread import SenderThread
from executor_adapter.prefect.mirror.state_events import Change
from executor_adapter.prefect.mirror.timeline import (
    History,
    JobHistory,
    Step,
    TaskRunHistory,
    UnsentChanges,
    step_of,
    task_run_id,
)

STALL_TIMEOUT = 90.0
"""Seconds without any progress of the server after which the unrecorded states are given up, and left in the outbox."""

HURRIED_CLOSE_SECONDS = 4.0
"""Time for the final states when a mirror is closed in a hurry, from the moment the hurry began.

A signal, a cancelled flow run or an exception leaves only seconds: then only final states are sent, and what the server
has not recorded in time is left in the outbox.
"""

MIN_HURRIED_CLOSE_SECONDS = 1.5
"""Minimum time for the final states, however long the jobs took to end."""


def remaining_close_seconds(hurried_since: float) -> float:
    """Return the seconds left for the server, where the hurry began at the monotonic time `hurried_since`."""
    return max(MIN_HURRIED_CLOSE_SECONDS, HURRIED_CLOSE_SECONDS - (time.monotonic() - hurried_since))


class PrefectMirror:
    """An observer that shows jobs as Prefect task runs; see the module.

    `history` decides about the intermediate states of finished jobs: "auto" skips them while many changes are
    unsent, "full" sends them all, however long that takes, and "final" skips them always. `stall_timeout` is how many
    seconds `drain` and `close` wait without any progress of the server before they give up. `outbox` keeps the final
    states that the server did not get; by default it is a file below PREFECT_HOME.
    """

    def __init__(
        self, *, history: History = "auto", stall_timeout: float = STALL_TIMEOUT, outbox: OutboxFile | None = None
    ) -> None:
        self.flow_run_id = current_flow_run_id()
        self._stall_timeout = stall_timeout
        self._unsent = UnsentChanges(history)
        self._thread = SenderThread(self._unsent, outbox)
        self._histories: dict[str, TaskRunHistory[Any]] = {}
        """The histories of unfinished jobs and task runs of engines, by job id."""
        self._jobs = 0
        self._jobs_lock = threading.Lock()
        self._deadline: float | None = None

    def join_flow_run(self) -> None:
        """Make the jobs task runs of the flow run around the caller, wherever the mirror was made.

        Raises:
            RuntimeError: it has mirrored jobs of another flow run, or is closed.
        """
        if self._thread.is_closed or (self._jobs and self.flow_run_id != current_flow_run_id()):
            raise RuntimeError("this mirror is closed, or mirrors another flow run's jobs: make one for each flow run")
        if not self._jobs:
            self.flow_run_id = current_flow_run_id()
            self._thread.adopt_flow_run()

    # --- transitions of jobs, on the supervisor's thread ---

    def __call__(self, transition: Transition) -> None:
        """Mirror a job of an observed executor from its submission on."""
        job = transition.job
        if transition.previous is None and job.job_id not in self._histories:
            driver = job.live.driver
            if driver is not None and driver.applies_max_runtime:
                return  # Prefect's engine drives the job, and reports it.
            self.add_job(job)
        self.enqueue(transition)

    def add_job(self, job: Job) -> JobHistory:
        """Mirror a job that is about to be submitted to an executor whose other jobs are not mirrored.

        Its transitions are passed to `enqueue`, or their steps to `enqueue_step`.
        """
        history = JobHistory(job, task_run_id(self.flow_run_id, job))
        self.add(history)
        return history

    def add(self, history: TaskRunHistory[Any]) -> None:
        """Mirror a task run whose steps are passed to `enqueue_step`. Any thread may call this."""
        with self._jobs_lock:
            self._jobs += 1
        self._histories[history.job_id] = history

    def remove_job(self, job: Job) -> None:
        """Do not mirror a job, because it was not submitted."""
        if self._histories.pop(job.job_id, None) is not None:
            self._jobs -= 1

    def enqueue(self, transition: Transition) -> None:
        """Queue a transition to be sent, if its job was added."""
        history = self._histories.get(transition.job.job_id)
        if history is not None:
            self.enqueue_step(history, step_of(transition))

    def enqueue_step(self, history: TaskRunHistory[Any], step: Step | Change) -> bool:
        """Queue a step of a task run that was added; False if the mirror is closed. Any thread may call this."""
        if self._thread.is_closed:
            return False
        if step.is_final:
            self._histories.pop(history.job_id, None)
        self._unsent.append(history, step)
        self._thread.wake()
        return True

    # --- the end ---

    def drain(self, timeout: float | None = None, *, check: Callable[[], object] | None = None) -> MirrorReport:
        """Wait until the server has recorded all states so far.

        It waits for at most `timeout` seconds, or without one until the server has made no progress for
        `stall_timeout`. Events that earlier processes have left get a few seconds more. A notice in the log says every
        few seconds how far the server is. `check()` is called ten times a second meanwhile; an exception of it ends the
        wait.
        """
        started_at = time.monotonic()
        ends_at = None if timeout is None else started_at + timeout
        limit = (
            f"given up after {self._stall_timeout:g} s without progress"
            if timeout is None
            else f"for at most {timeout:g} s"
        )
        notice = WaitNotice(limit)
        self._thread.start()
        while not self._thread.is_done() and not self._is_given_up(started_at, ends_at):
            if check is not None:
                check()
            notice.update(self.report, is_away=self._thread.is_server_away)
            self._thread.wait_for_round()
        return self.report()

    def send_inherited(self, timeout: float | None = None) -> None:
        """Send what earlier processes have left in the outbox, if they have left something; see `drain`."""
        if self._thread.is_heir:
            self.drain(timeout)

    def hurry(self) -> None:
        """Send only final states from now on, at once: the process is about to end."""
        self._thread.hurry()

    def close(self, timeout: float | None = None) -> MirrorReport:
        """Drain, leave the final states that the server did not get in the outbox, and end.

        With a `timeout` in seconds it hurries: only final states are sent, within that time. When another thread calls
        it meanwhile, that makes this call hurry. After an interrupt, all unrecorded final states are left there.
        """
        if timeout is not None:
            self._deadline = time.monotonic() + timeout
            self._thread.gathers = False
            self.hurry()
        try:
            if not self._thread.is_closed and (self._jobs or self._thread.has_started):
                self.drain()
        finally:
            if self._thread.close():
                self.report().log()
            self._thread.join()
        return self.report()

    def report(self) -> MirrorReport:
        """Return how far the server's record goes by now."""
        sender = self._thread.sender
        return MirrorReport(
            jobs=self._jobs,
            recorded=sender.recorded,
            resent=sender.resent,
            omitted=self._unsent.omitted,
            kept=self._thread.kept,
            missing=(*self._thread.missing, *sender.given_up),
            dropped=self._thread.dropped,
            unfinished=tuple(self._histories),
        )

    def unrecorded(self) -> tuple[str, ...]:
        """Return the ids of finished jobs whose final state the server is not known to have."""
        return self._thread.unrecorded()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(None if kind is None else HURRIED_CLOSE_SECONDS)

    def _is_given_up(self, started_at: float, ends_at: float | None) -> bool:
        now = time.monotonic()
        limits = [limit for limit in (ends_at, self._deadline) if limit is not None]
        if limits:
            return now >= min(limits)
        return now - max(started_at, self._thread.sender.progress_at) > self._stall_timeout
