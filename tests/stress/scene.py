"""What all processes of a seed share, what the executors of one program share, and the observer that watches them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executor_adapter import Job, JobStatus
from executor_adapter.error_facts import ErrorFacts
from executor_adapter.job.status import LEGAL_TRANSITIONS, TERMINAL
from executor_adapter.job.transition import Transition
from executor_adapter.store import JobStore, open_store
from tests.stress import functions
from tests.stress.plan import ProgramPlan


@dataclass(kw_only=True)
class Scene:
    """The folder of a seed, and the URL of its store."""

    folder: Path
    url: str | None

    @property
    def journal(self) -> str:
        """The file to which everything adds lines, in the order in which it happens."""
        return str(self.folder / "journal")

    @property
    def scratch(self) -> Path:
        """Where all processes make their temporary files."""
        return self.folder / "scratch"

    @property
    def durable(self) -> bool:
        return self.url not in (None, "memory:")

    @contextlib.contextmanager
    def opened(self) -> Iterator[JobStore]:
        """Open the store, and close it again."""
        assert self.url is not None
        store = open_store(self.url)
        try:
            yield store
        finally:
            store.close()


@dataclass(kw_only=True)
class Common:
    """What the executors of one program have in common."""

    plan: ProgramPlan
    scene: Scene
    name: str
    faults: list[str] = field(default_factory=list)
    stores: list[JobStore] = field(default_factory=list)
    """The stores that are opened for its executors, and closed when the program ends."""
    _shared: JobStore | None = None

    def own_store(self) -> JobStore:
        """Open a store for one executor."""
        assert self.scene.url is not None
        self.stores.append(open_store(self.scene.url))
        return self.stores[-1]

    def shared_store(self) -> JobStore:
        """Return the store that several executors use."""
        if self._shared is None:
            self._shared = self.own_store()
        return self._shared

    def close_stores(self) -> None:
        for store in self.stores:
            store.close()
        self.stores.clear()
        self._shared = None


class Watch:
    """An observer: follows each job through the state machine."""

    def __init__(self, journal: str) -> None:
        self.faults: list[str] = []
        self.jobs: list[Job] = []
        self.errors: dict[Job, ErrorFacts | None] = {}
        self._last: dict[Job, JobStatus] = {}
        self._journal = journal

    def __call__(self, transition: Transition) -> None:
        job, status = transition.job, transition.status
        before = self._last.get(job)
        if before is None:
            self.jobs.append(job)
        if before is not transition.previous:
            self.faults.append(f"{job.job_id}: observed {transition.previous} -> {status} after {before}")
        if before is not None and status not in LEGAL_TRANSITIONS[before]:
            self.faults.append(f"{job.job_id}: {before} -> {status} is not legal")
        if before is None and status is not JobStatus.PENDING:
            self.faults.append(f"{job.job_id}: began as {status}")
        self._last[job] = status
        self.errors[job] = transition.error
        functions.note(self._journal, "state", job.job_id, status, transition.attempt)

    def ended(self, job: Job) -> bool:
        return self._last.get(job) in TERMINAL

    def finals(self, *, requeues: bool) -> list[dict[str, Any]]:
        """Return how each job ended; `requeues`: whether what a shutdown ends waits for another host."""
        return [self._final(job, requeues) for job in self.jobs]

    def _final(self, job: Job, requeues: bool) -> dict[str, Any]:
        error = self.errors[job]
        cut_off = error is not None and error.shutdown
        return {
            "id": job.job_id,
            "status": str(job.status),
            "attempt": job.attempt,
            "attempts": len(job.attempts),
            "code": job.error_code,
            "at": 0.0 if job.completed_at is None else job.completed_at.timestamp(),
            "requeued": cut_off and requeues,
        }
