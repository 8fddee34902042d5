"""The progress table: shows the jobs of a run on the terminal, while they run and after they finish."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table

from executor_adapter.job import Job, JobStatus, Transition
from executor_adapter.monitoring import ProgressBar, ProgressCounts
from executor_adapter.terminal import SafeConsole, SafeText

WIDE = 100
"""Columns of a terminal from which on the table also has the pool and the attempts of each job."""

TRANSITION_TIMEOUT = 5.0
"""Seconds to wait for a job's last transition after its future is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job as a row of a table."""

    tool: str
    stage: str
    subject: str
    """The part of the tool that the job works on: table and window."""
    pool: str
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


class ProgressTable:
    """Observes executors, remembers their jobs and draws them as a table.

    Stage and subject come from a job's `metadata`; `record_result` adds what the function returned. Executors call the
    table on their own threads; everything else is for the thread that waits for the jobs.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _console()
        self._jobs: dict[str, Job] = {}
        self._results: dict[str, dict[str, Any]] = {}
        self._changed = threading.Condition()

    def __call__(self, transition: Transition) -> None:
        with self._changed:
            self._jobs[transition.job.job_id] = transition.job
            if transition.status.is_terminal:
                self._changed.notify_all()

    def record_result(self, job_id: str, value: Any) -> JobRow | None:
        """Store what the job's function returned (None if it failed); without a live table, print the job's line.

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
        if not self.console.is_terminal:
            self._print(row)
        return row

    def rows(self) -> list[JobRow]:
        """Return the jobs, sorted by stage (in the order the stages began), tool and subject."""
        with self._changed:
            rows = [self._row(job) for job in self._jobs.values()]
        stages = list(dict.fromkeys(row.stage for row in rows))
        return sorted(rows, key=lambda row: (stages.index(row.stage), row.tool, row.subject))

    @contextmanager
    def live(self, title: str) -> Iterator[None]:
        """Show on a terminal how many of the block's jobs are done, and a line about them when it ends."""
        if not self.console.is_terminal:
            yield
            return
        before = frozenset(self._jobs)
        with ProgressBar(title, lambda: self._counts(before)):
            yield

    def _counts(self, before: frozenset[str]) -> ProgressCounts:
        with self._changed:
            states = [job.status for job_id, job in self._jobs.items() if job_id not in before]
        failed = sum(state in (JobStatus.FAILED, JobStatus.CANCELLED) for state in states)
        return ProgressCounts(done=sum(state.is_terminal for state in states), failed=failed, total=len(states) or None)

    def render(self, rows: Sequence[JobRow] | None = None) -> Table:
        """Return a table with one row per job; where there is little room, without its pool."""
        wide = self.console.width >= WIDE
        names = ("tool", "stage", "job", *(("pool", "attempts") if wide else ()), "seconds", "rows", "state")
        cells = [_cells(row, wide) for row in (self.rows() if rows is None else rows)]
        table = Table(title="Jobs", title_justify="left", header_style="bold", box=None, pad_edge=False)
        table.padding = (0, gap := 2 if wide else 1, 0, 0)
        for name in names:
            side: JustifyMethod = "right" if name in ("attempts", "seconds", "rows") else "left"
            table.add_column(name, no_wrap=True, overflow="ellipsis", justify=side)
        # The job's name alone is cut where the rest needs the room; rich would cut all columns by the same share.
        others = sum(
            max([len(name), *(cell_len(str(row[at])) for row in cells)]) + gap
            for at, name in enumerate(names)
            if name != "job"
        )
        table.columns[names.index("job")].max_width = max(8, self.console.width - others - gap)
        for row in cells:
            table.add_row(*row)
        return table

    def _print(self, row: JobRow) -> None:
        attempts, seconds, records = _figures(row)
        retried = "" if attempts == "1" else f" after {attempts} attempts"
        count = f", {records} rows" if records else ""
        text = f"{row.stage} {row.tool} {row.subject}: {row.state}{retried}{count}, {seconds} s"
        self.console.print(text, soft_wrap=True)

    def _row(self, job: Job) -> JobRow:
        result = self._results.get(job.job_id, {})
        details = str(result.get("status", ""))
        return JobRow(
            tool=job.tool_name or "",
            stage=job.metadata.get("stage", job.job_type),
            subject=job.metadata.get("subject", ""),
            pool=job.pool,
            attempts=job.attempt,
            duration=job.duration,
            records=job.records_processed,
            status=job.status,
            note=job.error_code or (details if details.startswith("already") else ""),
            error=job.error_message,
        )


def _console() -> Console:
    console = SafeConsole()
    # A file or a pipe has no width, and the 80 columns that rich assumes would wrap every row of the table.
    return console if console.is_terminal else SafeConsole(width=140)


def _figures(row: JobRow) -> tuple[str, str, str]:
    seconds = "" if row.duration is None else f"{row.duration:.2f}"
    return str(row.attempts), seconds, "" if row.records is None else f"{row.records:,}"


def _cells(row: JobRow, wide: bool) -> tuple[str | SafeText, ...]:
    attempts, seconds, records = _figures(row)
    retried = "" if wide or attempts == "1" else f", {attempts} attempts"
    state = SafeText(row.state + retried, style="green" if row.status is JobStatus.COMPLETED else "bold red")
    return row.tool, row.stage, row.subject, *((row.pool, attempts) if wide else ()), seconds, records, state
