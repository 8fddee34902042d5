"""Counts the jobs of a run by tool and final state, and shows that as a table and as a report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from executor_adapter.job import JobStatus, Transition
from executor_adapter.prefect.mirror.states import state_kind
from executor_adapter.terminal import markdown_cell

MAX_LISTED_FAILURES = 20
MAX_ERROR_LENGTH = 200
"""Characters of an error in the report."""


class JobSnapshot(NamedTuple):
    """The fields of a job that are counted, at one transition. It does not keep the job alive."""

    job_id: str
    tool: str
    status: JobStatus
    error_code: str | None
    error_message: str | None
    duration: float | None
    attempts: int


def snapshot_of(transition: Transition) -> JobSnapshot:
    """Copy the job's fields. Call it on the supervisor's thread, which alone changes them."""
    job = transition.job
    return JobSnapshot(
        job_id=job.job_id,
        tool=job.tool_name or job.job_type,
        status=transition.status,
        error_code=job.error_code,
        error_message=job.error_message,
        duration=job.duration,
        attempts=job.attempt,
    )


@dataclass
class SummaryRow:
    """The jobs of one tool that ended in the same state."""

    jobs: int = 0
    retries: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    def add(self, finished: JobSnapshot) -> None:
        """Count a finished job."""
        self.jobs += 1
        self.retries += max(0, finished.attempts - 1)
        self.seconds += finished.duration or 0.0
        self.longest = max(self.longest, finished.duration or 0.0)


@dataclass
class RunSummary:
    """The counts of a run's jobs. `total` is the number of jobs, if it is known."""

    total: int | None = None
    submitted: int = 0
    finished: int = 0
    retries: int = 0
    by_tool_and_state: dict[tuple[str, str], SummaryRow] = field(default_factory=dict)
    failures: list[JobSnapshot] = field(default_factory=list)

    def add(self, job: JobSnapshot) -> None:
        """Count one transition."""
        if job.status is JobStatus.PENDING and job.attempts == 0:
            self.submitted += 1
        elif job.status is JobStatus.RETRYING:
            self.retries += 1
        elif job.status.is_terminal:
            self.finished += 1
            state = state_kind(job.status, error_code=job.error_code).name
            self.by_tool_and_state.setdefault((job.tool, state), SummaryRow()).add(job)
            if job.status is JobStatus.FAILED and len(self.failures) < MAX_LISTED_FAILURES:
                self.failures.append(job)

    @property
    def percent(self) -> float:
        """The share of finished jobs, in percent."""
        known = max(self.total or 0, self.submitted, self.finished)
        return 100.0 * self.finished / known if known else 0.0

    @property
    def states(self) -> Counter[str]:
        """The number of jobs by final state."""
        counted: Counter[str] = Counter()
        for (_, state), row in self.by_tool_and_state.items():
            counted[state] += row.jobs
        return counted

    def rows(self) -> list[dict[str, object]]:
        """Return the table: a row for each tool and state, with durations in seconds."""
        return [
            {
                "tool": tool,
                "state": state,
                "jobs": row.jobs,
                "retries": row.retries,
                "mean seconds": round(row.seconds / row.jobs, 3),
                "longest seconds": round(row.longest, 3),
            }
            for (tool, state), row in sorted(self.by_tool_and_state.items())
        ]

    def report(self, name: str) -> str:
        """Return the report in Markdown."""
        states = ", ".join(f"{count:,} {state}" for state, count in self.states.most_common())
        completed = self.states["Completed"]
        share = f"{completed / self.finished:.1%}" if self.finished else "none"
        lines = [
            f"# {name}",
            f"{self.finished:,} of {max(self.submitted, self.finished):,} jobs finished: {states or 'none'}.",
            f"Completed: {share}. Retries: {self.retries:,}.",
        ]
        if self.failures:
            lines += ["## Failures", "| tool | error | job |\n| --- | --- | --- |\n" + self._failure_rows()]
            if (more := self._failed() - len(self.failures)) > 0:
                lines.append(f"... and {more:,} more.")
        return "\n\n".join(lines) + "\n"

    def _failure_rows(self) -> str:
        return "\n".join(
            f"| {markdown_cell(each.tool)} | {markdown_cell(_error(each))} | {markdown_cell(each.job_id)} |"
            for each in self.failures
        )

    def _failed(self) -> int:
        return self.finished - self.states["Completed"] - self.states["Cancelled"]


def _error(failure: JobSnapshot) -> str:
    text = f"{failure.error_code}: {failure.error_message or ''}"
    return text if len(text) <= MAX_ERROR_LENGTH else f"{text[: MAX_ERROR_LENGTH - 1]}…"
