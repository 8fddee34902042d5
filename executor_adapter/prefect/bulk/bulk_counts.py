"""Counts the jobs of one call of `run_jobs` for its progress bar."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sized

from executor_adapter.job import Job
from executor_adapter.monitoring import ProgressBar, ProgressCounts


class BulkCounts:
    """Counts jobs that have ended, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = self._failed = 0
        self._total: int | None = None
        self._note = ""

    def bar(self, jobs: Iterable[Job]) -> ProgressBar:
        """Return the bar of a run of these jobs, whose number is known where they have a length."""
        self._total = len(jobs) if isinstance(jobs, Sized) else None
        return ProgressBar("run_jobs", self._read)

    def add(self, *, failed: bool) -> None:
        """Count a job that ended."""
        with self._lock:
            self._done += 1
            self._failed += failed

    def wait_for(self, what: str) -> None:
        """Say what is waited for, now that all jobs have ended."""
        self._total, self._note = self._done, f"waiting for {what}"

    def _read(self) -> ProgressCounts:
        return ProgressCounts(done=self._done, failed=self._failed, total=self._total, note=self._note)
