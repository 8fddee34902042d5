"""The report of a run: its jobs on the terminal, while they run and when they end, and Markdown for an artifact."""

from __future__ import annotations

import base64
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from executor_adapter.job import Job, JobStatus, Transition
from executor_adapter.monitoring import ProgressBar, ProgressCounts
from executor_adapter.pipeline.processing import Balance
from executor_adapter.terminal import escaped, escaped_lines, markdown_cell

MAX_REASONS = 10
"""Reasons that are listed; the rest is counted together."""
MAX_REASON = 200
"""Characters of a reason."""
MAX_NAMED = 3
"""Jobs of a tool of which the report says what they collected; of one job it says the first and the last window."""

_FAILED = (JobStatus.FAILED, JobStatus.CANCELLED)


class JobLines:
    """Observes executors and the futures of their jobs, and prints a line for each job that has ended.

    Stage and subject come from a job's `metadata`. Executors and futures call this on their own threads; everything
    else is for the thread that waits for the jobs.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._futures: dict[str, Any] = {}
        self._ended = SimpleQueue[str]()

    def __call__(self, transition: Transition) -> None:
        self._jobs[transition.job.job_id] = transition.job
        if transition.status.is_terminal:
            self._ended.put(transition.job.job_id)

    def on_done(self, future: Any) -> None:
        """Note that the future of a job is done."""
        job_id = str(future.task_run_id)
        self._futures[job_id] = future
        self._ended.put(job_id)

    def wait(self) -> tuple[Any, Job | None]:
        """Wait for the next job that has ended; return its future, and the job, None where no executor accepted it."""
        while True:
            job_id = self._ended.get()
            job = self._jobs.get(job_id)
            # The future may be done a moment before the executor has ended the job, or after it.
            if job_id in self._futures and (job is None or job.status.is_terminal):
                return self._futures.pop(job_id), job

    def print_result(self, job: Job, value: Any) -> None:
        """Print the line of a job whose function has returned `value`, None if it failed."""
        details = str(value.get("status", "")) if isinstance(value, dict) else ""
        note = job.error_code or (details if details.startswith("already") else "")
        state = f"{job.status} ({note})" if note else str(job.status)
        retried = "" if job.attempt == 1 else f" after {job.attempt} attempts"
        count = "" if job.records_processed is None else f", {job.records_processed:,} rows"
        seconds = "" if job.duration is None else f", {job.duration:.2f} s"
        # Not by a console of rich, which would write into the bar.
        print(escaped(f"{name_of(job)}: {state}{retried}{count}{seconds}"), flush=True)

    def jobs(self) -> list[Job]:
        """Return the jobs, in the order in which they were accepted."""
        return list(self._jobs.copy().values())

    def bar(self, title: str) -> AbstractContextManager[object]:
        """Return what shows on a terminal how many jobs are done, while its block runs."""
        return ProgressBar(title, self._counts) if sys.stdout.isatty() else nullcontext()

    def _counts(self) -> ProgressCounts:
        states = [job.status for job in self._jobs.copy().values()]
        failed = sum(state in _FAILED for state in states)
        return ProgressCounts(done=sum(state.is_terminal for state in states), failed=failed, total=len(states) or None)


def name_of(job: Job) -> str:
    """Return what the job does, of which tool and to what."""
    return f"{job.metadata['stage']} {job.tool_name} {job.metadata['subject']}"


def collection_sentences(jobs: Sequence[Job], balances: Iterable[Balance], again: Mapping[str, int]) -> Iterator[str]:
    """Yield a sentence per tool: how many rows this run collected, of what, and how many were collected before.

    `again`: how many rows of each tool came again.
    """
    for each in balances:
        collected = [job for job in jobs if job.metadata["stage"] == "collect" and job.tool_name == each.name]
        new = sum(job.records_processed or 0 for job in collected)
        skipped = f"; {each.collected - new:,} were there before" if each.collected > new else ""
        names = [job.metadata["subject"] for job in collected if job.records_processed]
        names[MAX_NAMED:] = [f"{len(names) - MAX_NAMED} more"] if names[MAX_NAMED:] else []
        found = f" ({', '.join(names)})" if names else ""
        found += f", {rows:,} came again" if (rows := again.get(each.name, 0)) else ""
        yield f"{each.name}: {new:,} new rows{found}{skipped}"


def failure_sentences(jobs: Iterable[Job]) -> list[str]:
    """Return a sentence per failed or cancelled job, with its error code, attempts and message."""
    return [
        f"failed: {name_of(job)}: {job.error_code or job.status}"
        f" after {job.attempt} attempt{'' if job.attempt == 1 else 's'}: {job.error_message or ''}"
        for job in jobs
        if job.status in _FAILED
    ]


def reject_sentences(rejects: Counter[tuple[str, str, str]]) -> list[str]:
    """Return a sentence for each of the most frequent reasons for which rows were rejected, and one for the rest."""
    shown = rejects.most_common(MAX_REASONS)
    found = [
        f"rejected: {_rows(rows)} of {tool}.{table}: {' '.join(reason.split())[:MAX_REASON]}"
        for (tool, table, reason), rows in shown
    ]
    rest = rejects.total() - sum(rows for _, rows in shown)
    return [*found, f"rejected: {_rows(rest)} for other reasons: executor-adapter pipeline rejects"] if rest else found


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


def markdown(
    title: str,
    jobs: Iterable[Job],
    rows: Iterable[str],
    rejected: Sequence[str],
    summaries: Sequence[Mapping[str, Any]],
    lake: Path,
) -> str:
    """Return the report of a run as Markdown: failures first.

    Args:
        title: the name of the run.
        jobs: its jobs.
        rows: sentences on the rows that were collected and processed.
        rejected: sentences on the rows that were rejected.
        summaries: what `summarise_tables` has returned for each tool.
        lake: where the data is.
    """
    parts = [f"# {title}"]
    if failures := failure_sentences(jobs):
        parts += ["## Failures", _items(map(markdown_cell, failures))]
    parts += ["## Rows", _items(map(markdown_cell, rows))]
    if rejected:
        parts += ["## Rejected rows, by reason", _items(map(markdown_cell, rejected))]
    if summaries:
        parts += ["## Summary", _items(line for each in summaries for line in each["lines"])]
    # An image is embedded, because the UI's browser may not reach the files of this machine.
    pictures = [(each["title"], Path(each["png"]).read_bytes()) for each in summaries if each["png"]]
    parts += [f"![{shown}](data:image/png;base64,{base64.b64encode(png).decode()})" for shown, png in pictures]
    return escaped_lines("\n\n".join([*parts, f"The data is in `{lake}`."]))


def _items(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
