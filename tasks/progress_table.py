"""The board: the jobs of a run as a person wants to see them, while they run and when they are over."""

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

from executor_adapter.job.model import Job, JobStatus, Transition

SHOWN_LIVE = 30
"""Rows of the live table: a taller one than the screen would flicker."""

SETTLES_WITHIN = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLine:
    """A job, as a row of a table."""

    tool: str
    stage: str
    subject: str
    """What of the tool it is for: table and window."""
    pool: str
    attempts: int
    duration: float | None
    """Seconds, from its first start."""
    records: int | None
    """Rows that it collected or processed, new ones alone."""
    status: JobStatus
    note: str
    """What the status leaves open: `already_collected`, or the error code."""
    error: str | None

    @property
    def state(self) -> str:
        return f"{self.status} ({self.note})" if self.note else str(self.status)


class Board:
    """An observer of executors that remembers the jobs, and draws them.

    A job's `metadata` says its stage and subject; `settle` adds what the function gave back. Executors call the board
    on their own threads; all else is for the thread that waits for the jobs.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _console()
        self._jobs: dict[str, Job] = {}
        self._values: dict[str, dict[str, Any]] = {}
        self._changed = threading.Condition()

    def __call__(self, transition: Transition) -> None:
        with self._changed:
            self._jobs[transition.job.job_id] = transition.job
            if transition.status.is_terminal:
                self._changed.notify_all()

    def settle(self, job_id: str, value: Any) -> JobLine | None:
        """Note what the job's function gave back (None where it failed), and print its line where no table moves.

        Its future may be done a moment before the executor has told of it: that is waited for. None: no executor ever
        took the job.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_over(job_id), timeout=SETTLES_WITHIN)
        if job_id not in self._jobs:
            return None
        self._values[job_id] = value if isinstance(value, dict) else {}
        line = self._line(self._jobs[job_id])
        if not self.console.is_terminal:
            self._print(line)
        return line

    def _is_over(self, job_id: str) -> bool:
        return job_id in self._jobs and self._jobs[job_id].status.is_terminal

    def lines(self) -> list[JobLine]:
        """The jobs, by stage in the order the stages began, then by tool and subject."""
        with self._changed:
            lines = [self._line(job) for job in self._jobs.values()]
        stages = list(dict.fromkeys(line.stage for line in lines))
        return sorted(lines, key=lambda line: (stages.index(line.stage), line.tool, line.subject))

    def failures(self) -> list[JobLine]:
        return [line for line in self.lines() if line.status in (JobStatus.FAILED, JobStatus.CANCELLED)]

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the jobs while the block runs, where there is a terminal to show them on."""
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self._live_table, console=self.console, refresh_per_second=4, transient=True):
            yield

    def table(self, lines: Sequence[JobLine] | None = None) -> Table:
        """A row a job."""
        table = Table(title="Jobs", title_justify="left", header_style="bold", box=SIMPLE_HEAD)
        for name in ("tool", "stage", "job", "pool"):
            table.add_column(name)
        for name in ("attempts", "seconds", "rows"):
            table.add_column(name, justify="right")
        table.add_column("state")
        for line in self.lines() if lines is None else lines:
            state = Text(line.state, style=_style(line.status))
            table.add_row(line.tool, line.stage, line.subject, line.pool, *_figures(line), state)
        return table

    def _live_table(self) -> Table:
        lines = self.lines()
        # What runs or waits matters; of what is over, the last few.
        live = [line for line in lines if not line.status.is_terminal][:SHOWN_LIVE]
        over = [line for line in lines if line.status.is_terminal]
        table = self.table([*over[len(over) - SHOWN_LIVE + len(live) :], *live] if len(lines) > SHOWN_LIVE else lines)
        table.title = f"Jobs: {len(over)} of {len(lines)} are over"
        return table

    def _print(self, line: JobLine) -> None:
        attempts, seconds, records = _figures(line)
        times = "" if attempts == "1" else f" after {attempts} attempts"
        rows = f", {records} rows" if records else ""
        text = f"{line.stage} {line.tool} {line.subject}: {line.state}{times}{rows}, {seconds} s"
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _line(self, job: Job) -> JobLine:
        value = self._values.get(job.job_id, {})
        kept = str(value.get("status", ""))
        return JobLine(
            tool=job.tool_name or "",
            stage=job.metadata.get("stage", job.job_type),
            subject=job.metadata.get("subject", ""),
            pool=job.pool,
            attempts=job.attempt,
            duration=job.duration,
            records=job.records_processed,
            status=job.status,
            note=job.error_code or (kept if kept.startswith("already") else ""),
            error=job.error_message,
        )


def _console() -> Console:
    console = Console()
    # A file or a pipe has no width: what rich then assumes would break every line of the table.
    return console if console.is_terminal else Console(width=140)


def _figures(line: JobLine) -> tuple[str, str, str]:
    seconds = "" if line.duration is None else f"{line.duration:.2f}"
    return str(line.attempts), seconds, "" if line.records is None else f"{line.records:,}"


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
