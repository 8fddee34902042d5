"""Describes a run: sentences for the terminal, and Markdown for an artifact of Prefect. Does not import Prefect."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from executor_adapter.job import JobStatus
from executor_adapter.pipeline.flows.job_lines import JobRow
from executor_adapter.pipeline.processing import Balance

MAX_REASONS = 20
"""Reasons that the report lists; it counts the rest together."""
MAX_REASON_SENTENCES = 5
"""Reasons that the terminal shows of them."""
MAX_REASON = 200
"""Characters of a reason on the terminal."""


def collection_sentences(jobs: Sequence[JobRow], balances: Iterable[Balance]) -> Iterator[str]:
    """Yield a sentence per tool: how many rows this run collected, and how many were collected before."""
    for each in balances:
        new = sum(job.records or 0 for job in jobs if job.stage == "collect" and job.tool == each.name)
        previous = each.collected - new
        skipped = f"; {previous:,} were already collected, and not collected again" if previous > 0 else ""
        yield f"{each.name}: {new:,} new rows{skipped}"


def failure_sentences(jobs: Iterable[JobRow]) -> list[str]:
    """Return a sentence per failed or cancelled job, with its error code, attempts and message."""
    return [
        f"failed: {job.stage} {job.tool} {job.subject}: {job.note or job.status}"
        f" after {job.attempts} attempt{'' if job.attempts == 1 else 's'}: {job.error or ''}"
        for job in jobs
        if job.status in (JobStatus.FAILED, JobStatus.CANCELLED)
    ]


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


def markdown(
    title: str,
    jobs: Iterable[JobRow],
    rows: Iterable[str],
    rejects: Counter[tuple[str, str, str]],
    summaries: Sequence[Mapping[str, Any]],
    lake: Path,
) -> str:
    """Return the report of a run as Markdown: failures first.

    Args:
        title: the name of the run.
        jobs: its jobs.
        rows: sentences on the rows that were collected and processed.
        rejects: rejected rows by tool, table and reason.
        summaries: what `summarise_tables` has returned for each tool.
        lake: where the data is.
    """
    parts = [f"# {title}"]
    if failures := failure_sentences(jobs):
        parts += ["## Failures", _items(map(_in_cell, failures))]
    parts += ["## Rows", _items(rows)]
    if rejects:
        parts += ["## Rejected rows, by reason", _reject_table(rejects)]
    if summaries:
        parts += ["## Summary", _items(line for each in summaries for line in each["lines"])]
    # An image is embedded, because the UI's browser may not reach the files of this machine.
    pictures = [(each["title"], Path(each["png"]).read_bytes()) for each in summaries if each["png"]]
    parts += [f"![{shown}](data:image/png;base64,{base64.b64encode(png).decode()})" for shown, png in pictures]
    return "\n\n".join([*parts, f"The data is in `{lake}`."])


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


def _items(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _in_cell(text: str) -> str:
    """Return the text as a cell of a Markdown table, in which nothing of it is markup: no HTML, image or link."""
    return _MARKUP.sub(_escaped, escape(" ".join(text.split()), quote=False))


_MARKUP = re.compile(r"[\\`*\[\]|~]|://|www\.", re.I)


def _escaped(markup: re.Match[str]) -> str:
    return "&#58;//" if markup[0] == "://" else f"{markup[0][:-1]}\\{markup[0][-1]}"
