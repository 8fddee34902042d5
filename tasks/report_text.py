"""Describes a run: sentences for the terminal, rows and Markdown for Prefect artifacts. Does not import Prefect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from executor_adapter import JobStatus
from tasks.progress_table import JobRow
from tasks.row_balance import Balance


def artifact_rows(jobs: Iterable[JobRow]) -> list[dict[str, Any]]:
    """Return one row per job in the form of Prefect's table artifact."""
    return [
        {
            "tool": job.tool,
            "stage": job.stage,
            "job": job.subject,
            "pool": job.pool,
            "attempts": job.attempts,
            "seconds": None if job.duration is None else round(job.duration, 3),
            "rows": job.records,
            "state": job.state,
        }
        for job in jobs
    ]


def collection_sentences(jobs: Iterable[JobRow], balances: Iterable[Balance]) -> list[str]:
    """Return a sentence per tool: how many rows this run collected, and how many were collected before."""
    jobs = list(jobs)
    return [_collection_sentence(each, [job for job in jobs if job.tool == each.tool]) for each in balances]


def _collection_sentence(balance: Balance, jobs: list[JobRow]) -> str:
    new = sum(job.records or 0 for job in jobs if job.stage == "collect")
    previous = balance.collected - new
    skipped = f"; {previous:,} were already collected, and not collected again" if previous > 0 else ""
    return f"{balance.tool}: {new:,} new rows{skipped}"


def failure_sentences(jobs: Iterable[JobRow]) -> list[str]:
    """Return a sentence per failed or cancelled job, with its error code, attempts and message."""
    return [
        f"failed: {job.stage} {job.tool} {job.subject}: {job.note or job.status}"
        f" after {job.attempts} attempt{'' if job.attempts == 1 else 's'}: {job.error or ''}"
        for job in jobs
        if _has_failed(job)
    ]


def _has_failed(job: JobRow) -> bool:
    return job.status in (JobStatus.FAILED, JobStatus.CANCELLED)


def success_rate(jobs: Sequence[JobRow]) -> float:
    """Return the share of the jobs that completed; 1 if there are none."""
    completed = sum(job.status is JobStatus.COMPLETED for job in jobs)
    return completed / len(jobs) if jobs else 1.0


def mean_duration(jobs: Iterable[JobRow]) -> float:
    """Return the mean duration of the started jobs in seconds; 0 if none started."""
    durations = [job.duration for job in jobs if job.duration is not None]
    return fmean(durations) if durations else 0.0


def markdown(title: str, jobs: Sequence[JobRow], rows: Sequence[str], sentences: Sequence[str], lake: Path) -> str:
    """Return the report of a run as Markdown."""
    failed = [job for job in jobs if _has_failed(job)]
    figures = (
        "| jobs | completed | failed | success rate | average duration |\n|--:|--:|--:|--:|--:|\n"
        f"| {len(jobs)} | {len(jobs) - len(failed)} | {len(failed)} | {success_rate(jobs):.1%}"
        f" | {mean_duration(jobs):.2f} s |"
    )
    parts = [
        f"# {title}",
        figures,
        "## Rows",
        _items(rows),
    ]
    if sentences:
        parts += ["## Summary", _items(sentences)]
    if failed:
        listed = "\n".join(_failure_row(job) for job in failed)
        parts += ["## Failures", f"| job | error code | attempts | message |\n|---|---|--:|---|\n{listed}"]
    parts.append(f"The data is in `{lake}`.")
    return "\n\n".join(parts)


def _items(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _failure_row(job: JobRow) -> str:
    return f"| {job.stage} {job.tool} {job.subject} | {job.note} | {job.attempts} | {_in_cell(job.error or '')} |"


def _in_cell(text: str) -> str:
    """Return the text as a cell of a Markdown table, in which nothing of it is markup: no HTML, image or link."""
    return _MARKUP.sub(_escaped, escape(" ".join(text.split()), quote=False))


_MARKUP = re.compile(r"[\\`*\[\]|~]|://|www\.", re.I)


def _escaped(markup: re.Match[str]) -> str:
    return "&#58;//" if markup[0] == "://" else f"{markup[0][:-1]}\\{markup[0][-1]}"
