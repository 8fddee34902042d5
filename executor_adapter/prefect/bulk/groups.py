"""Groups of `run_jobs(..., group=100)`: many short jobs are one task run, and only those that fail have their own.

A group's task run is Pending when its first job is submitted, Running when the first of them starts, and Completed when
all of them have ended, however they did; its message counts them. If jobs were cancelled it is Cancelled. A job that
fails gets a task run of its own with all its states, so that the number of failed task runs is that of failed jobs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

from executor_adapter.job import TERMINAL, Job, JobStatus, Transition
from executor_adapter.prefect.bulk.job_scope import BulkJobScope, FlowRunScope
from executor_adapter.prefect.mirror.mirror import TaskRunMirror
from executor_adapter.prefect.mirror.timeline import GroupHistory, Step, step_of

_SHOWN = (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)


class JobGroup:
    """One group: counts its jobs, and shows them as one task run. Any thread may call it."""

    def __init__(self, mirror: TaskRunMirror, first: Job, number: int) -> None:
        self.history = GroupHistory(mirror.flow_run_id, first, number)
        self.size = 0
        """The number of jobs that were added."""
        self._mirror = mirror
        self._lock = threading.Lock()
        self._counts: Counter[JobStatus] = Counter()
        self._is_closed = False
        self._has_begun = False

    def add(self) -> None:
        """Add a job that is about to be submitted."""
        with self._lock:
            if not self.size:
                self._mirror.add(self.history)
                self._send(JobStatus.PENDING, time.time())
            self.size += 1

    def remove(self) -> None:
        """Remove a job again, which was not submitted."""
        with self._lock:
            self.size -= 1
            self._end_if_over()

    def close(self) -> None:
        """Add no more jobs: the task run ends with the last of those that it has."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._end_if_over()

    def begin(self, at: float) -> None:
        """Note that a job has started."""
        with self._lock:
            if not self._has_begun:
                self._has_begun = True
                self._send(JobStatus.RUNNING, at)

    def end(self, status: JobStatus) -> None:
        """Count the end of a job."""
        with self._lock:
            self._counts[status] += 1
            self._end_if_over()

    def _end_if_over(self) -> None:
        if not self._is_closed or self.history.summary or self._counts.total() < self.size:
            return
        parts = [f"{self._counts[status]} {status}" for status in _SHOWN if self._counts[status]]
        self.history.summary = f"{', '.join(parts) or 'none'} of {self.size} jobs"
        is_cancelled = self._counts[JobStatus.CANCELLED] or not self.size
        self._send(JobStatus.CANCELLED if is_cancelled else JobStatus.COMPLETED, time.time())

    def _send(self, status: JobStatus, at: float) -> None:
        self._mirror.enqueue_step(self.history, Step(status, at, 1, None, None))


class GroupedJobScope(BulkJobScope):
    """The scope of a job in a group: its function sees the group's task run, and its messages go to the log of that."""

    __slots__ = ("group", "steps")

    def __init__(self, flow: FlowRunScope, group: JobGroup, index: int) -> None:
        super().__init__(flow, group.history, index)
        self.group = group
        self.steps: tuple[Step, ...] = ()
        """What has happened to the job, in case that it fails."""

    def mirror(self, mirror: TaskRunMirror, transition: Transition) -> None:
        """Note a transition of the job; show all of them in a task run of its own if the job has failed."""
        self.steps += (step_of(transition),)
        if transition.status is JobStatus.RUNNING:
            self.group.begin(transition.at)
        elif transition.status is JobStatus.FAILED:
            self.history = mirror.add_job(transition.job)
            for step in self.steps:
                mirror.enqueue_step(self.history, step)
        if transition.status in TERMINAL:
            self.group.end(transition.status)
