"""Describes a run: sentences for the terminal, rows and Markdown for Prefect artifacts. Does not import Prefect."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from executor_adapter.job import JobStatus
from executor_adapter.pipeline.flows.progress_table import JobRow
from executor_adapter.pipeline.processing import Balance

MAX_REASONS = 20
"""Reasons that the report lists; it counts the rest together."""
MAX_REASON_SENTENCES = 5
"""Reasons that the terminal shows of them."""
MAX_REASON = 200
"""Characters of a reason on the terminal."""


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


def reject_sentences(rejects: Counter[tuple[str, str, str]]) -> list[str]:
    """Return a sentence for each of the most frequent reasons for which rows were rejected, and one for the rest."""
    shown = rejects.most_common(MAX_REASON_SENTENCES)
    found = [
        f"rejected: {_rows(rows)} of {tool}/{table}: {' '.join(reason.split())[:MAX_REASON]}"
        for (tool, table, reason), rows in shown
    ]
    rest = rejects.total() - sum(rows for _, rows in shown)
    return [*found, f"rejected: {_rows(rest)} for other reasons: see rejected in the lake"] if rest else found


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


def success_rate(jobs: Sequence[JobRow]) -> float:
    """Return the share of the jobs that completed; 1 if there are none."""
    completed = sum(job.status is JobStatus.COMPLETED for job in jobs)
    return completed / len(jobs) if jobs else 1.0


def mean_duration(jobs: Iterable[JobRow]) -> float:
    """Return the mean duration of the started jobs in seconds; 0 if none started."""
    durations = [job.duration for job in jobs if job.duration is not None]
    return fmean(durations) if durations else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the report of a run shows beside its jobs."""

    title: str
    rows: Sequence[str]
    """Sentences on the rows that were collected and processed."""
    sentences: Sequence[str]
    """Sentences of the summaries."""
    rejects: Counter[tuple[str, str, str]]
    """Rejected rows by tool, table and reason."""
    plots: Sequence[str]
    """Pictures, in Markdown."""
    links: dict[str, str]
    """Addresses of the run's other artifacts, by what they show."""
    lake: Path


def markdown(report: Report, jobs: Sequence[JobRow]) -> str:
    """Return the report of a run as Markdown: failures first."""
    failed = [job for job in jobs if _has_failed(job)]
    figures = (
        "| jobs | completed | failed | success rate | average duration |\n|--:|--:|--:|--:|--:|\n"
        f"| {len(jobs)} | {len(jobs) - len(failed)} | {len(failed)} | {success_rate(jobs):.1%}"
        f" | {mean_duration(jobs):.2f} s |"
    )
    parts = [f"# {report.title}", figures]
    if report.links:
        parts.append("More of this run: " + ", ".join(f"[{text}]({url})" for text, url in report.links.items()))
    if failed:
        listed = "\n".join(_failure_row(job) for job in failed)
        parts += ["## Failures", f"| job | error code | attempts | message |\n|---|---|--:|---|\n{listed}"]
    parts += ["## Rows", _items(report.rows)]
    if report.rejects:
        parts += ["## Rejected rows, by reason", _reject_table(report.rejects)]
    if report.sentences or report.plots:
        parts += ["## Summary", _items(report.sentences), *report.plots]
    parts.append(f"The data is in `{report.lake}`.")
    return "\n\n".join(parts)


def _reject_table(rejects: Counter[tuple[str, str, str]]) -> str:
    listed = [
        f"| {_in_cell(tool)} | {_in_cell(table)} | {_in_cell(reason)} | {rows:,} |"
        for (tool, table, reason), rows in rejects.most_common(MAX_REASONS)
    ]
    left_out = len(rejects) - len(listed)
    if left_out > 0:
        rest = rejects.total() - sum(rows for _, rows in rejects.most_common(MAX_REASONS))
        listed.append(f"| | | {left_out} more reasons | {rest:,} |")
    return "\n".join(["| tool | table | reason | rows |\n|---|---|---|--:|", *listed])


def _name(job: JobRow) -> str:
    return _in_cell(f"{job.stage} {job.tool} {job.subject}")


def _items(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _failure_row(job: JobRow) -> str:
    return f"| {_name(job)} | {job.note} | {job.attempts} | {_in_cell(job.error or '')} |"


def _in_cell(text: str) -> str:
    """Return the text as a cell of a Markdown table, in which nothing of it is markup: no HTML, image or link."""
    return _MARKUP.sub(_escaped, escape(" ".join(text.split()), quote=False))


_MARKUP = re.compile(r"[\\`*\[\]|~]|://|www\.", re.I)


def _escaped(markup: re.Match[str]) -> str:
    return "&#58;//" if markup[0] == "://" else f"{markup[0][:-1]}\\{markup[0][-1]}"
