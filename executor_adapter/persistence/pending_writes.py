"""The journal: what is to be recorded next of an executor's jobs. Filled by any thread, emptied by the recorder's."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from executor_adapter.exceptions import JobCancelledError
from executor_adapter.job.model import TERMINAL, Job, JobStatus, Progress, Transition
from executor_adapter.persistence.serialization import StoredCall, record_of
from executor_adapter.store.base import JobRecord


@dataclass(frozen=True, slots=True)
class Batch:
    """Records that go out together, each beside its job."""

    new: list[JobRecord]
    changed: list[JobRecord]
    jobs: list[Job]


class Journal:
    """Of each job the last that was told counts: a job that began and ended since the last batch is one row of it."""

    def __init__(self, *, queue: str, keeps_jobs: bool, quarantined: Mapping[str, Job]) -> None:
        self.hands_over = False
        """Jobs that the executor lets go of from now on are to be run by another, and stay PENDING for it."""
        self.calls: dict[Job, StoredCall] = {}
        """How to make those again that have never been written."""
        self._queue = queue
        self._keeps_jobs = keeps_jobs
        self._quarantined = quarantined
        self._told: deque[Transition] = deque()
        self._due: dict[Job, Transition] = {}
        self._running: dict[Job, Progress | None] = {}
        """With the progress last recorded."""
        self._handed_over: set[Job] = set()
        self._disowned: set[Job] = set()

    def __len__(self) -> int:
        return len(self._due) + len(self._told)

    def tell(self, transition: Transition) -> None:
        """From the supervisor's thread."""
        self._told.append(transition)

    # --- on the recorder's thread ---

    def gather(self) -> None:
        """Take what was told; a job moves behind those that changed before it."""
        for _ in range(len(self._told)):
            told = self._told.popleft()
            job = told.job
            if told.status is JobStatus.RUNNING:
                self._running[job] = None
            else:
                self._running.pop(job, None)
            if job in self._disowned:
                if told.status in TERMINAL:
                    self._disowned.discard(job)
                continue
            self._due.pop(job, None)
            self._due[job] = told

    def note_progress(self) -> None:
        """Have what running jobs said of their progress since the last time recorded too."""
        for job, last in self._running.items():
            progress = job._live.progress
            if progress is not last and job not in self._disowned:
                self._running[job] = progress
                told = Transition(job, JobStatus.RUNNING, JobStatus.RUNNING, 0.0, job._live.attempt)
                self._due.setdefault(job, told)

    def batch(self, size: int, host_id: str) -> Batch:
        """The first `size` that are due; they stay so until `written`."""
        batch = Batch([], [], [])
        for job, told in itertools.islice(self._due.items(), size):
            stored = self.calls.get(job)
            record = self._record(told, stored, host_id)
            (batch.changed if stored is None else batch.new).append(record)
            batch.jobs.append(job)
        return batch

    def written(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            told = self._due.pop(job)
            self.calls.pop(job, None)
            if told.status in TERMINAL:
                self._handed_over.discard(job)

    def hand_over(self, jobs: Collection[Job]) -> None:
        """When the executor has let go of these, others are to run them."""
        self._handed_over.update(jobs)

    def disown(self, jobs: Iterable[Job]) -> int:
        """These are another host's: nothing more of them is recorded. How many of them had ended here."""
        ended = 0
        for job in jobs:
            told = self._due.pop(job, None)
            if job.status not in TERMINAL:
                self._disowned.add(job)
            elif told is not None:
                ended += 1
        return ended

    def known_to_store(self, jobs: Iterable[Job]) -> list[Job]:
        """Those of `jobs` that were written before, and of the due ones."""
        return [job for job in {*jobs, *self._due} if job not in self.calls]

    def _record(self, told: Transition, stored: StoredCall | None, host_id: str) -> JobRecord:
        job = told.job
        record = record_of(
            job,
            told.status,
            queue=self._queue,
            host=host_id,
            stored=stored or _WRITTEN,
            quarantined=told.status is JobStatus.FAILED and self._quarantined.get(job.job_id) is job,
            keep=self._keeps_jobs,
        )
        return _left(record) if self._is_left(told) else record

    def _is_left(self, told: Transition) -> bool:
        let_go = told.status is JobStatus.CANCELLED and was_let_go(told.error)
        return let_go and (self.hands_over or told.job in self._handed_over)


_WRITTEN = StoredCall("")
"""Stands for the call of a job that the store knows."""


def _left(record: JobRecord) -> JobRecord:
    """As the next host is to find it."""
    return replace(record, status=JobStatus.PENDING, host=None, completed_at=None, error_code=None, error_message=None)


def was_let_go(error: BaseException | None) -> bool:
    """Whether it was its executor's end that ended the job, and nobody's wish."""
    return isinstance(error, JobCancelledError) and bool(error.context.get("let_go"))
