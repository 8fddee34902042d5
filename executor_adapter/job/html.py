"""Jobs and results as HTML tables, as notebooks show them. Everything in them is escaped.

This module does not import Job and JobResult: their modules import this one.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from typing import Any

from executor_adapter.exceptions.display import message_of
from executor_adapter.job.functions import function_reference
from executor_adapter.job.status import JobStatus

MAX_ROWS = 20
"""Rows of a table of many; a line below it says how many are left out."""

MAX_TEXT = 200
"""Characters of one cell."""


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], more: int = 0) -> str:
    """Return an HTML table with its caption; None is an empty cell, and `more` rows are said to be left out."""
    cells = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    heads = f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr></thead>" if head else ""
    foot = f"<p>... and {more} more</p>" if more > 0 else ""
    return f"<div><p><b>{escape(caption)}</b></p><table>{heads}<tbody>{cells}</tbody></table>{foot}</div>"


def html_of_job(job: Any) -> str:
    """Return a table of what is known of a job; what is not known yet is left out."""
    progress = job.progress
    rows = (
        ("function", function_reference(job.function)),
        ("tool", job.tool_name),
        ("pool", job.pool),
        ("status", job.status),
        ("attempt", job.attempt or None),
        ("started", job.started_at),
        ("next attempt", job.retry_at),
        ("seconds", job.duration),
        ("progress", progress and f"{progress.done:g} of {progress.total or '?'} {progress.message}".strip()),
        ("records", job.records_processed),
        ("error", job.error_code and f"{job.error_code}: {job.error_message or ''}"),
    )
    return html_table(f"Job {job.job_id}", (), [row for row in rows if row[1] is not None])


def html_of_jobs(caption: str, jobs: Sequence[Any]) -> str:
    """Return a table with a line for each of the first jobs."""
    first = jobs[:MAX_ROWS]
    rows = [(job.job_id, function_reference(job.function), job.status, job.attempt, job.duration) for job in first]
    return html_table(caption, ("job", "function", "status", "attempt", "seconds"), rows, len(jobs) - MAX_ROWS)


def html_of_results(results: Sequence[Any]) -> str:
    """Return how many jobs ended how, and a table of the first ones, those that did not complete before the others."""
    counts = Counter(result.status for result in results)
    ended = ", ".join(f"{counts[status]} {status}" for status in JobStatus if counts[status])
    first = sorted(results, key=lambda result: result.status is JobStatus.COMPLETED)[:MAX_ROWS]
    rows = [(each.job_id, each.status, each.attempts, each.duration, _outcome(each)) for each in first]
    caption = f"{len(results)} jobs{': ' if ended else ''}{ended}"
    head = ("job", "status", "attempts", "seconds", "value or error")
    return html_table(caption, head, rows, len(results) - MAX_ROWS)


def _outcome(result: Any) -> str:
    if result.error is not None:
        return f"{result.error_code}: {message_of(result.error)}"
    return reprlib.repr(result.value)  # It shows a value too whose own code fails.


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:.3f}"
        case datetime():
            return value.isoformat(" ", "seconds")
        case _:
            text = str(value)
            return escape(text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}...")
