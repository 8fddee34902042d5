"""The progress table: shows the jobs of a run on the terminal, while they run and after they finish."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, assert_never

from rich.cells import cell_len
from rich.console import Console, Group, JustifyMethod
from rich.live import Live
from rich.table import Table

from executor_adapter.job import Job, JobStatus, Transition
from executor_adapter.terminal import SafeConsole, SafeText, escaped

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
        """Show what runs while the block runs, then a line for each stage of it; does nothing without a terminal."""
        if not self.console.is_terminal:
            yield
            return
        before = frozenset(self._jobs)
        view = functools.partial(self._live_view, before)
        try:
            with Live(get_renderable=view, console=self.console, refresh_per_second=4, transient=True):
                yield
        finally:
            for line in _stage_lines(self._rows_since(before)):
                self.console.print(line)

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
            max([len(name), *(cell_len(str(row[at])) for row in cells)]) + gap for at, name in _all_but_job(names)
        )
        table.columns[names.index("job")].max_width = max(8, self.console.width - others - gap)
        for row in cells:
            table.add_row(*row)
        return table

    def _rows_since(self, before: frozenset[str]) -> list[JobRow]:
        """Return the rows of the jobs that were not known before."""
        with self._changed:
            return [self._row(job) for job_id, job in self._jobs.items() if job_id not in before]

    def _live_view(self, before: frozenset[str]) -> Group:
        """Draw a line for each new stage, then one for each job that runs, as many as the screen has lines for."""
        rows = self._rows_since(before)
        stages = list(_stage_lines(rows))
        running = [row for row in rows if row.status in (JobStatus.RUNNING, JobStatus.RETRYING)]
        room = max(1, self.console.height - len(stages) - 2)
        table = Table.grid(padding=(0, 0, 0, 1), pad_edge=True)
        for name in ("state", "seconds", "tool", "job"):
            table.add_column(name, no_wrap=True, overflow="ellipsis", justify="right" if name == "seconds" else "left")
        for row in running[:room]:
            table.add_row(SafeText(row.state, style=_style(row.status)), f"{_figures(row)[1]} s", row.tool, row.subject)
        hidden = len(running) - room
        if hidden > 0:
            rest = f" and {hidden:,} more run"
        elif not running and any(row.status is JobStatus.PENDING for row in rows):
            rest = " waiting for workers to start"
        else:
            rest = "" if rows else " looking for what there is to do"
        return Group(*stages, table, *([SafeText(rest, style="dim")] if rest else []))

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


def _stage_lines(rows: Sequence[JobRow]) -> Iterator[SafeText]:
    """Yield a line with the counts of each stage, in the order in which they began."""
    for stage in dict.fromkeys(row.stage for row in rows):
        yield _stage_line(stage, [row for row in rows if row.stage == stage])


def _stage_line(stage: str, rows: Sequence[JobRow]) -> SafeText:
    over = sum(row.status.is_terminal for row in rows)
    failed = sum(row.status in (JobStatus.FAILED, JobStatus.CANCELLED) for row in rows)
    waiting = sum(row.status is JobStatus.PENDING for row in rows)
    records = sum(row.records or 0 for row in rows)
    text = SafeText(f"{escaped(stage)}: {over} of {len(rows)} jobs done", no_wrap=True, overflow="ellipsis")
    text.stylize("bold" if over < len(rows) else "dim")
    if failed:
        text.append(f", {failed} failed", style="bold red")
    return text.append(f", {waiting} waiting" if waiting else "").append(f", {records:,} rows" if records else "")


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
    state = SafeText(row.state + retried, style=_style(row.status))
    return row.tool, row.stage, row.subject, *((row.pool, attempts) if wide else ()), seconds, records, state


def _all_but_job(names: Sequence[str]) -> list[tuple[int, str]]:
    return [(at, name) for at, name in enumerate(names) if name != "job"]


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
