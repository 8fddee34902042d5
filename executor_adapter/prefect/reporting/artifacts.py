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
from collections.abc import Iterator
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from executor_adapter.executor import JobExecutor, current_executor
from executor_adapter.job import JobStatus, Transition
from executor_adapter.prefect.reporting.background import BackgroundCalls
from executor_adapter.prefect.reporting.run_summary import RunSummary, snapshot_of

UPDATE_INTERVAL = 2.0
"""Seconds between two updates of the progress, each of which is a request, however many jobs there are."""


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
            self.summary.add(snapshot_of(transition))
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
        create_markdown_artifact(
            self.summary.report(self.name), key=f"{self._key}-report", description="Summary and failures"
        )


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
