"""A run of jobs as Prefect's artifacts: how far it is while it runs; a table and a report when it is over.

@flow
def nightly() -> None:
    with JobExecutor() as executor, job_report("collection", executor=executor):
        collect.map(tools).wait()          # or run_jobs(...), or plain tasks under a JobTaskRunner
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from executor_adapter.executor.default import current_executor
from executor_adapter.executor.executor import JobExecutor
from executor_adapter.job.status import JobStatus
from executor_adapter.job.transition import Transition
from executor_adapter.prefect.reporting.batches import Batches
from executor_adapter.prefect.reporting.run_summary import JobSnapshot, RunSummary, snapshot_of

logger = logging.getLogger("executor_adapter.prefect")

UPDATE_SECONDS = 2.0
"""The progress is told at most so often: a request each time, however many jobs there are."""


class JobReport:
    """An observer of an executor that keeps a run's artifacts; see `job_report`. Made in the flow run."""

    def __init__(self, name: str = "jobs", *, total: int | None = None) -> None:
        self.name = name
        self.summary = RunSummary(total)
        self._key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "jobs"
        self._progress: UUID | None = None
        self._shown = 0.0
        self._batches: Batches[JobSnapshot | None] = Batches(self._take, UPDATE_SECONDS)

    def __call__(self, transition: Transition) -> None:
        if transition.status is not JobStatus.RUNNING:
            self._batches.put(snapshot_of(transition))

    def close(self, *, summarise: bool = True) -> None:
        """Tell what has not been told; `summarise`: with the table and the report."""
        if summarise:
            self._batches.put(None)
        self._batches.close()

    def _take(self, items: list[JobSnapshot | None]) -> None:
        for item in items:
            if item is not None:
                self.summary.add(item)
        self._show_progress()
        if None in items:
            self._summarise()

    def _show_progress(self) -> None:
        # Never back: jobs may be found on the way.
        percent = max(self._shown, round(self.summary.percent, 1))
        if self._progress is None:
            made = create_progress_artifact(percent, key=f"{self._key}-progress", description="Jobs that are over")
            assert isinstance(made, UUID)  # a coroutine only where an event loop runs
            self._progress = made
        elif percent > self._shown:
            update_progress_artifact(self._progress, percent)
        self._shown = percent

    def _summarise(self) -> None:
        create_table_artifact(self.summary.rows(), key=f"{self._key}-jobs", description="Jobs by tool and state")
        create_markdown_artifact(
            self.summary.report(self.name), key=f"{self._key}-report", description="How they ended"
        )


@contextlib.contextmanager
def job_report(
    name: str = "jobs", *, executor: JobExecutor | None = None, total: int | None = None
) -> Iterator[JobReport]:
    """Show the jobs that an executor runs in the block as artifacts of the flow run: `NAME-progress`, which moves while
    they run, then `NAME-jobs` (a table) and `NAME-report` (Markdown).

    `executor`: by default the one in force. `total`: how many jobs there will be, where that is known; else progress is
    of those submitted so far. Wait for the jobs inside the block. A server that is away costs the artifacts alone, and
    a block that is left by a signal or its like makes no table and no report.
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
