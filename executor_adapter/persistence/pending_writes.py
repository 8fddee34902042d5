"""Pending writes: the changes of an executor's jobs that are not in its store yet."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from executor_adapter.job import TERMINAL, Job, JobStatus, Progress, Transition, function_reference
from executor_adapter.persistence.serialization import StoredCall, record_of
from executor_adapter.store import JobRecord
from executor_adapter.supervision.driver import JobDriver
from executor_adapter.supervision.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class WriteBatch:
    """Records that are written in one transaction, and the jobs that they are of."""

    new: list[JobRecord]
    changed: list[JobRecord]
    jobs: list[Job]


class PendingWrites:
    """Collects transitions and turns them into batches of records, one record a job.

    Only a job's latest transition counts: a job that started and finished since the last batch is written once.
    Any thread may call `on_transition`; the other methods belong to the recorder's thread.

    Args:
        supervisor: has the executor's quarantined jobs, and those that were admitted and never written.
        queue: the queue that the records name.
        is_durable: whether the store outlives this process; in the memory of this process, records hold the job itself.
        requeue_on_shutdown: whether jobs that the executor's shutdown interrupts stay PENDING in a durable store, for
            another host. Jobs that are driven from outside the executor never do.
    """

    def __init__(self, supervisor: Supervisor, queue: str, *, is_durable: bool, requeue_on_shutdown: bool) -> None:
        self._requeue_on_shutdown = supervisor.follow_up.requeues = requeue_on_shutdown and is_durable
        self._queue = queue
        self._keeps_jobs = not is_durable
        self._quarantined = supervisor.intake.quarantined
        self._unwritten: dict[Job, StoredCall] = supervisor.intake.unwritten
        self._offered: set[Job] = set()
        """Those of them that the store was given; it may have them, although it has not answered."""
        self._received: deque[Transition] = deque()
        self._due: dict[Job, Transition] = {}
        self._running: dict[Job, Progress | None] = {}
        """Running jobs, with their progress as last recorded."""
        self.requeued: set[Job] = set()
        """Jobs to be recorded as PENDING once the executor has interrupted them, for another host that can run them."""
        self._disowned: set[Job] = set()

    def __len__(self) -> int:
        return len(self._due) + len(self._received)

    @property
    def is_empty(self) -> bool:
        """Whether every job that was admitted is in the store, with its latest transition."""
        return not len(self) and not self._unwritten

    def on_transition(self, transition: Transition) -> None:
        """Receive a transition, on the supervisor's thread."""
        self._received.append(transition)

    # --- on the recorder's thread ---

    def collect(self) -> None:
        """Make the transitions received by now due; a job moves behind those that changed before it."""
        for _ in range(len(self._received)):
            transition = self._received.popleft()
            job = transition.job
            if transition.status is JobStatus.RUNNING:
                self._running[job] = None
            else:
                self._running.pop(job, None)
            if job in self._disowned:
                if transition.status in TERMINAL:
                    self._disowned.discard(job)
                continue
            self._due.pop(job, None)
            self._due[job] = transition

    def collect_progress(self) -> None:
        """Make running jobs due that have reported new progress since it was last recorded."""
        for job, recorded in self._running.items():
            progress = job.state.progress
            if progress is not recorded and job not in self._disowned:
                self._running[job] = progress
                unchanged = Transition(job, JobStatus.RUNNING, JobStatus.RUNNING, 0.0, job.state.attempt)
                self._due.setdefault(job, unchanged)

    def batch(self, size: int, host_id: str) -> WriteBatch:
        """Return the first `size` due records; they stay due until `mark_written`."""
        batch = WriteBatch([], [], [])
        for job, transition in itertools.islice(self._due.items(), size):
            call = self._unwritten.get(job)
            record = self._record(transition, call, host_id)
            (batch.changed if call is None else batch.new).append(record)
            batch.jobs.append(job)
        self._offered.update(batch.jobs)
        return batch

    def mark_written(self, jobs: Iterable[Job]) -> None:
        """Remove the jobs of a batch that is in the store now."""
        for job in jobs:
            transition = self._due.pop(job)
            self._unwritten.pop(job, None)
            self._offered.discard(job)
            if transition.status in TERMINAL:
                self.requeued.discard(job)

    def disown(self, jobs: Iterable[Job]) -> None:
        """Record nothing more of these jobs, which another host runs now."""
        for job in jobs:
            self._due.pop(job, None)
            self.requeued.discard(job)
            if job.status not in TERMINAL:
                self._disowned.add(job)

    def may_be_stored(self, job: Job) -> bool:
        """Return whether another host may find the job in the store. Any thread may ask."""
        return job not in self._unwritten or job in self._offered

    def known_to_store(self, jobs: Iterable[Job]) -> list[Job]:
        """Return which of `jobs` and of the due jobs the store is known to have."""
        return [job for job in {*jobs, *self._due} if job not in self._unwritten]

    def _record(self, transition: Transition, call: StoredCall | None, host_id: str) -> JobRecord:
        job, status, error = transition.job, transition.status, transition.error
        record = record_of(
            job,
            status,
            queue=self._queue,
            host=host_id,
            stored=call or (StoredCall(function_reference(job.function)) if self._keeps_jobs else _ALREADY_STORED),
            quarantined=status is JobStatus.FAILED and self._quarantined.get(job.job_id) is job,
            keep=self._keeps_jobs,
        )
        # What drives a job from outside the executor is here alone. That of a hooked job is each executor's own.
        can_run_elsewhere = type(job.live.driver) is not JobDriver
        is_requeued = can_run_elsewhere and (self._requeue_on_shutdown or job in self.requeued)
        if is_requeued and status is JobStatus.CANCELLED and error is not None and error.shutdown:  # For the next host.
            record = replace(record, status=JobStatus.PENDING, host=None, completed_at=None)
            return replace(record, retry_at=job.state.retry_at, error_code=None, error_message=None)
        return record if error is None else replace(record, traceback=error.traceback)


_ALREADY_STORED = StoredCall("")
"""Replaces the call of a job whose record already has it; a change does not write it again."""
