"""What a run did, in words: sentences for the terminal, rows and Markdown for Prefect. No Prefect needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from executor_adapter.job.model import JobStatus
from tasks.progress_table import JobLine
from tasks.row_balance import Balance


def table_rows(lines: Iterable[JobLine]) -> list[dict[str, Any]]:
    """A row a job, as Prefect's table artifact takes it."""
    return [
        {
            "tool": line.tool,
            "stage": line.stage,
            "job": line.subject,
            "pool": line.pool,
            "attempts": line.attempts,
            "seconds": None if line.duration is None else round(line.duration, 3),
            "rows": line.records,
            "state": line.state,
        }
        for line in lines
    ]


def new_rows(lines: Iterable[JobLine], balances: Iterable[Balance]) -> list[str]:
    """Of each tool, how many rows this run collected, and that none was collected twice."""
    lines = list(lines)
    return [_new_rows(each, [line for line in lines if line.tool == each.tool]) for each in balances]


def _new_rows(balance: Balance, lines: list[JobLine]) -> str:
    new = sum(line.records or 0 for line in lines if line.stage == "collect")
    before = balance.collected - new
    kept = f"; {before:,} were already collected, and not collected again" if before > 0 else ""
    return f"{balance.tool}: {new:,} new rows{kept}"


def failure_lines(lines: Iterable[JobLine]) -> list[str]:
    return [
        f"failed: {line.stage} {line.tool} {line.subject}: {line.note or line.status}"
        f" after {line.attempts} attempt{'' if line.attempts == 1 else 's'}: {line.error or ''}"
        for line in lines
        if line.status in (JobStatus.FAILED, JobStatus.CANCELLED)
    ]


def success_rate(lines: Sequence[JobLine]) -> float:
    """Of the jobs, the share that completed; 1 where there are none."""
    completed = sum(line.status is JobStatus.COMPLETED for line in lines)
    return completed / len(lines) if lines else 1.0


def mean_duration(lines: Iterable[JobLine]) -> float:
    """Seconds; 0 where no job ever started."""
    durations = [line.duration for line in lines if line.duration is not None]
    return fmean(durations) if durations else 0.0


def markdown(title: str, lines: Sequence[JobLine], rows: Sequence[str], sentences: Sequence[str], lake: Path) -> str:
    """The report of a run."""
    failed = [line for line in lines if line.status in (JobStatus.FAILED, JobStatus.CANCELLED)]
    figures = (
        "| jobs | completed | failed | success rate | average duration |\n|--:|--:|--:|--:|--:|\n"
        f"| {len(lines)} | {len(lines) - len(failed)} | {len(failed)} | {success_rate(lines):.1%}"
        f" | {mean_duration(lines):.2f} s |"
    )
    parts = [
        f"# {title}",
        figures,
        "## Rows",
        _items(rows),
    ]
    if sentences:
        parts += ["## What they tell", _items(sentences)]
    if failed:
        listed = "\n".join(_failure_row(line) for line in failed)
        parts += ["## Failures", f"| job | error code | attempts | message |\n|---|---|--:|---|\n{listed}"]
    parts.append(f"The data lies in `{lake}`.")
    return "\n\n".join(parts)


def _items(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _failure_row(line: JobLine) -> str:
    message = escape(" ".join((line.error or "").split()), quote=False).replace("|", "\\|")
    return f"| {line.stage} {line.tool} {line.subject} | {line.note} | {line.attempts} | {message} |"
