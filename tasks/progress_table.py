"""The progress table: shows the jobs of a run on the terminal, while they run and after they finish."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, assert_never

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from executor_adapter import Job, JobStatus, Transition

MAX_LIVE_ROWS = 30
"""Rows of the live table. A table that is taller than the screen flickers."""

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
            self._changed.wait_for(lambda: self._is_finished(job_id), timeout=TRANSITION_TIMEOUT)
        if job_id not in self._jobs:
            return None
        self._results[job_id] = value if isinstance(value, dict) else {}
        row = self._row(self._jobs[job_id])
        if not self.console.is_terminal:
            self._print(row)
        return row

    def _is_finished(self, job_id: str) -> bool:
        return job_id in self._jobs and self._jobs[job_id].status.is_terminal

    def rows(self) -> list[JobRow]:
        """Return the jobs, sorted by stage (in the order the stages began), tool and subject."""
        with self._changed:
            rows = [self._row(job) for job in self._jobs.values()]
        stages = list(dict.fromkeys(row.stage for row in rows))
        return sorted(rows, key=lambda row: (stages.index(row.stage), row.tool, row.subject))

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the jobs on the terminal while the block runs; does nothing without a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self._live_table, console=self.console, refresh_per_second=4, transient=True):
            yield

    def render(self, rows: Sequence[JobRow] | None = None) -> Table:
        """Return a table with one row per job."""
        table = Table(title="Jobs", title_justify="left", header_style="bold", box=SIMPLE_HEAD)
        for name in ("tool", "stage", "job", "pool"):
            table.add_column(name)
        for name in ("attempts", "seconds", "rows"):
            table.add_column(name, justify="right")
        table.add_column("state")
        for row in self.rows() if rows is None else rows:
            state = Text(row.state, style=_style(row.status))
            table.add_row(row.tool, row.stage, row.subject, row.pool, *_figures(row), state)
        return table

    def _live_table(self) -> Table:
        rows = self.rows()
        # Jobs that run or wait matter most; of the finished jobs the last few are shown.
        live = [row for row in rows if not row.status.is_terminal][:MAX_LIVE_ROWS]
        finished = [row for row in rows if row.status.is_terminal]
        shown = [*finished[len(finished) - MAX_LIVE_ROWS + len(live) :], *live] if len(rows) > MAX_LIVE_ROWS else rows
        table = self.render(shown)
        table.title = f"Jobs: {len(finished)} of {len(rows)} finished"
        return table

    def _print(self, row: JobRow) -> None:
        attempts, seconds, records = _figures(row)
        retried = "" if attempts == "1" else f" after {attempts} attempts"
        count = f", {records} rows" if records else ""
        text = f"{row.stage} {row.tool} {row.subject}: {row.state}{retried}{count}, {seconds} s"
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

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
    console = Console()
    # A file or a pipe has no width, and the 80 columns that rich assumes would wrap every row of the table.
    return console if console.is_terminal else Console(width=140)


def _figures(row: JobRow) -> tuple[str, str, str]:
    seconds = "" if row.duration is None else f"{row.duration:.2f}"
    return str(row.attempts), seconds, "" if row.records is None else f"{row.records:,}"


def _style(status: JobStatus) -> str:
    match status:
        case JobStatus.PENDING:
            return "dim"
        case JobStatus.RUNNING:
            return "cyan"
        case JobStatus.RETRYING:
            return "yellow"
        case JobStatus.COMPLETED:
            return "green"
        case JobStatus.FAILED | JobStatus.CANCELLED:
            return "bold red"
        case _:
            assert_never(status)
