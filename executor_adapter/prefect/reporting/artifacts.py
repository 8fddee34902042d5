"""Shows a run of jobs as Prefect artifacts: its progress while it runs, then a table and a report.

`job_report` goes around the block that runs the jobs:

    @flow
    def nightly() -> None:
        with JobExecutor() as executor, job_report("collection", executor=executor):
            collect.map(tools).wait()          # or run_jobs(...), or plain tasks under a JobTaskRunner
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from executor_adapter.executor import JobExecutor, current_executor
from executor_adapter.job import Job, JobStatus, Transition
from executor_adapter.prefect.mirror.states import state_kind
from executor_adapter.prefect.reporting.background import BackgroundCalls
from executor_adapter.terminal import markdown_cell

UPDATE_INTERVAL = 2.0
"""Seconds between two updates of the progress, each of which is a request, however many jobs there are."""


MAX_LISTED_FAILURES = 20
MAX_ERROR_LENGTH = 200
"""Characters of an error in the report."""


# --- the counts of a run ---


@dataclass
class SummaryRow:
    """The jobs of one tool that ended in the same state."""

    jobs: int = 0
    retries: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    def add(self, finished: Job) -> None:
        """Count a finished job."""
        self.jobs += 1
        self.retries += max(0, finished.attempt - 1)
        self.seconds += finished.duration or 0.0
        self.longest = max(self.longest, finished.duration or 0.0)


@dataclass
class RunSummary:
    """The counts of a run's jobs. `total` is the number of jobs, if it is known."""

    total: int | None = None
    submitted: int = 0
    finished: int = 0
    retries: int = 0
    by_tool_and_state: dict[tuple[str, str], SummaryRow] = field(default_factory=dict)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """The tool, error and id of the first jobs that failed."""

    def add(self, transition: Transition) -> None:
        """Count one transition. Call it on the supervisor's thread, which alone changes the job."""
        job, status = transition.job, transition.status
        if status is JobStatus.PENDING and job.attempt == 0:
            self.submitted += 1
        elif status is JobStatus.RETRYING:
            self.retries += 1
        elif status.is_terminal:
            self.finished += 1
            tool, state = job.tool_name or job.job_type, state_kind(status, error_code=job.error_code).name
            self.by_tool_and_state.setdefault((tool, state), SummaryRow()).add(job)
            if status is JobStatus.FAILED and len(self.failures) < MAX_LISTED_FAILURES:
                self.failures.append((tool, _error(job), job.job_id))

    @property
    def percent(self) -> float:
        """The share of finished jobs, in percent."""
        known = max(self.total or 0, self.submitted, self.finished)
        return 100.0 * self.finished / known if known else 0.0

    @property
    def states(self) -> Counter[str]:
        """The number of jobs by final state."""
        counted: Counter[str] = Counter()
        for (_, state), row in self.by_tool_and_state.items():
            counted[state] += row.jobs
        return counted

    def rows(self) -> list[dict[str, object]]:
        """Return the table: a row for each tool and state, with durations in seconds."""
        return [
            {
                "tool": tool,
                "state": state,
                "jobs": row.jobs,
                "retries": row.retries,
                "mean seconds": round(row.seconds / row.jobs, 3),
                "longest seconds": round(row.longest, 3),
            }
            for (tool, state), row in sorted(self.by_tool_and_state.items())
        ]

    def report(self, name: str) -> str:
        """Return the report in Markdown."""
        states = ", ".join(f"{count:,} {state}" for state, count in self.states.most_common())
        share = f"{self.states['Completed'] / self.finished:.1%}" if self.finished else "none"
        lines = [
            f"# {name}",
            f"{self.finished:,} of {max(self.submitted, self.finished):,} jobs finished: {states or 'none'}.",
            f"Completed: {share}. Retries: {self.retries:,}.",
        ]
        if self.failures:
            lines += ["## Failures", "| tool | error | job |\n| --- | --- | --- |\n" + self._failure_rows()]
            failed = self.finished - self.states["Completed"] - self.states["Cancelled"]
            if (more := failed - len(self.failures)) > 0:
                lines.append(f"... and {more:,} more.")
        return "\n\n".join(lines) + "\n"

    def _failure_rows(self) -> str:
        return "\n".join(f"| {' | '.join(map(markdown_cell, failure))} |" for failure in self.failures)


def _error(failure: Job) -> str:
    text = f"{failure.error_code}: {failure.error_message or ''}"
    return text if len(text) <= MAX_ERROR_LENGTH else f"{text[: MAX_ERROR_LENGTH - 1]}…"


# --- the artifacts ---


class JobReport:
    """An observer of an executor that keeps a run's artifacts; see `job_report`. Make it in the flow run."""

    def __init__(self, name: str = "jobs", *, total: int | None = None) -> None:
        self.name = name
        self.summary = RunSummary(total)
        self._key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "jobs"
        self._progress: UUID | None = None
        self._shown = 0.0
        self._calls = BackgroundCalls("job-report")
        self._lock = threading.Lock()
        """Guards the summary: the jobs of several executors may be reported."""
        self._is_update_due = False
        self._closed = threading.Event()

    def __call__(self, transition: Transition) -> None:
        if transition.status is JobStatus.RUNNING:
            return
        with self._lock:
            self.summary.add(transition)
            if not self._is_update_due:
                self._is_update_due = True
                self._calls.put(self._update)

    def close(self, *, summarise: bool = True) -> None:
        """Show the last progress and, with `summarise`, the table and the report."""
        self._closed.set()
        self._calls.put(self._update)
        if summarise:
            self._calls.put(self._summarise)
        self._calls.wait()

    def _update(self) -> None:
        """Show the progress, and then wait, so that the next update is for many jobs."""
        self._is_update_due = False
        self._show_progress()
        self._closed.wait(UPDATE_INTERVAL)

    def _show_progress(self) -> None:
        # The progress never goes back, although jobs may be added on the way.
        percent = max(self._shown, round(self.summary.percent, 1))
        if self._progress is None:
            created = create_progress_artifact(percent, key=f"{self._key}-progress", description="Finished jobs")
            assert isinstance(created, UUID)  # It is a coroutine only in an event loop.
            self._progress = created
        elif percent > self._shown:
            update_progress_artifact(self._progress, percent)
        self._shown = percent

    def _summarise(self) -> None:
        create_table_artifact(self.summary.rows(), key=f"{self._key}-jobs", description="Jobs by tool and final state")
        report = self.summary.report(self.name)
        create_markdown_artifact(report, key=f"{self._key}-report", description="Summary and failures")


@contextlib.contextmanager
def job_report(
    name: str = "jobs", *, executor: JobExecutor | None = None, total: int | None = None
) -> Iterator[JobReport]:
    """Show the jobs that an executor runs in the block as artifacts of the flow run.

    `NAME-progress` moves while they run; `NAME-jobs` (a table) and `NAME-report` (Markdown) follow at the end. Wait for
    the jobs inside the block.

    `executor` is by default the current one. `total` is the number of jobs, if it is known; without it the progress is
    the share of the jobs submitted so far. If the server cannot be reached, only the artifacts are missing. A block
    that a signal or another BaseException ends makes no table and no report.
    """
    executor = executor or current_executor()
    report = JobReport(name, total=total)
    executor.add_observer(report)
    summarise = True
    try:
        yield report
    except BaseException as error:
        summarise = isinstance(error, Exception)
        raise
    finally:
        executor.remove_observer(report)
        report.close(summarise=summarise)
