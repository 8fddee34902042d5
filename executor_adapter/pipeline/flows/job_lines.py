"""The jobs of a run on the terminal: a bar while they run, and a line for each that is done."""

from __future__ import annotations

import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from executor_adapter.job import Job, JobStatus, Transition
from executor_adapter.monitoring import ProgressBar, ProgressCounts
from executor_adapter.terminal import escaped

TRANSITION_TIMEOUT = 5.0
"""Seconds to wait for a job's last transition after its future is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """What is shown of a job."""

    tool: str
    stage: str
    subject: str
    """The part of the tool that the job works on: table and window."""
    attempts: int
    duration: float | None
    """Seconds since the first start of the job."""
    records: int | None
    """The number of new rows that the job collected or processed."""
    status: JobStatus
    note: str
    """Details of the status: `already_collected`, or the error code."""
    error: str | None

    @property
    def state(self) -> str:
        return f"{self.status} ({self.note})" if self.note else str(self.status)


class JobLines:
    """Observes executors, remembers their jobs, and prints a line for each that is done.

    Stage and subject come from a job's `metadata`; `record_result` adds what the function returned. Executors call this
    on their own threads; everything else is for the thread that waits for the jobs.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._results: dict[str, dict[str, Any]] = {}
        self._changed = threading.Condition()

    def __call__(self, transition: Transition) -> None:
        with self._changed:
            self._jobs[transition.job.job_id] = transition.job
            if transition.status.is_terminal:
                self._changed.notify_all()

    def record_result(self, job_id: str, value: Any) -> JobRow | None:
        """Store what the job's function returned (None if it failed), and print the job's line.

        A future may be done a moment before the executor reports the transition, so this waits for the transition.
        Returns None if no executor ever accepted the job.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: job_id in self._jobs and self._jobs[job_id].status.is_terminal, timeout=TRANSITION_TIMEOUT
            )
        if job_id not in self._jobs:
            return None
        self._results[job_id] = value if isinstance(value, dict) else {}
        row = self._row(self._jobs[job_id])
        _print(row)
        return row

    def rows(self) -> list[JobRow]:
        """Return the jobs, sorted by stage (in the order the stages began), tool and subject."""
        with self._changed:
            rows = [self._row(job) for job in self._jobs.values()]
        stages = list(dict.fromkeys(row.stage for row in rows))
        return sorted(rows, key=lambda row: (stages.index(row.stage), row.tool, row.subject))

    def bar(self, title: str) -> AbstractContextManager[object]:
        """Return what shows on a terminal how many jobs are done, while its block runs."""
        return ProgressBar(title, self._counts) if sys.stdout.isatty() else nullcontext()

    def _counts(self) -> ProgressCounts:
        with self._changed:
            states = [job.status for job in self._jobs.values()]
        failed = sum(state in (JobStatus.FAILED, JobStatus.CANCELLED) for state in states)
        return ProgressCounts(done=sum(state.is_terminal for state in states), failed=failed, total=len(states) or None)

    def _row(self, job: Job) -> JobRow:
        details = str(self._results.get(job.job_id, {}).get("status", ""))
        return JobRow(
            tool=job.tool_name or "",
            stage=job.metadata.get("stage", job.job_type),
            subject=job.metadata.get("subject", ""),
            attempts=job.attempt,
            duration=job.duration,
            records=job.records_processed,
            status=job.status,
            note=job.error_code or (details if details.startswith("already") else ""),
            error=job.error_message,
        )


def _print(row: JobRow) -> None:
    retried = "" if row.attempts == 1 else f" after {row.attempts} attempts"
    count = "" if row.records is None else f", {row.records:,} rows"
    seconds = "" if row.duration is None else f", {row.duration:.2f} s"
    # Not by a console of rich, which would write into the bar.
    print(escaped(f"{row.stage} {row.tool} {row.subject}: {row.state}{retried}{count}{seconds}"), flush=True)
