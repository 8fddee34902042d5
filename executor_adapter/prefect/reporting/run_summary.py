"""Counts the jobs of a run by tool and by how they ended, and words that as a table and as a report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

from executor_adapter.job.status import JobStatus
from executor_adapter.job.transition import Transition
from executor_adapter.prefect.mirror.states import state_kind

SHOWN_FAILURES = 20


class JobSnapshot(NamedTuple):
    """What a transition says that is counted; it holds no job."""

    job_id: str
    tool: str
    status: JobStatus
    error_code: str | None
    message: str | None
    duration: float | None
    attempts: int


def snapshot_of(transition: Transition) -> JobSnapshot:
    """Read off on the supervisor's thread, which alone changes the job."""
    job = transition.job
    return JobSnapshot(
        job_id=job.job_id,
        tool=job.tool_name or job.job_type,
        status=transition.status,
        error_code=job.error_code,
        message=job.error_message,
        duration=job.duration,
        attempts=job.attempt,
    )


@dataclass
class SummaryRow:
    """The jobs of one tool that ended alike."""

    jobs: int = 0
    retries: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    def add(self, over: JobSnapshot) -> None:
        self.jobs += 1
        self.retries += max(0, over.attempts - 1)
        self.seconds += over.duration or 0.0
        self.longest = max(self.longest, over.duration or 0.0)


@dataclass
class RunSummary:
    """All jobs that were told of. `total`: how many there will be, where that is known."""

    total: int | None = None
    submitted: int = 0
    over: int = 0
    retries: int = 0
    lines: dict[tuple[str, str], SummaryRow] = field(default_factory=dict)
    failures: list[JobSnapshot] = field(default_factory=list)

    def add(self, each: JobSnapshot) -> None:
        """Count one transition."""
        if each.status is JobStatus.PENDING and each.attempts == 0:
            self.submitted += 1
        elif each.status is JobStatus.RETRYING:
            self.retries += 1
        elif each.status.is_terminal:
            self.over += 1
            state = state_kind(each.status, error_code=each.error_code).name
            self.lines.setdefault((each.tool, state), SummaryRow()).add(each)
            if each.status is JobStatus.FAILED and len(self.failures) < SHOWN_FAILURES:
                self.failures.append(each)

    @property
    def percent(self) -> float:
        """How many of the jobs are over, of 100."""
        known = max(self.total or 0, self.submitted, self.over)
        return 100.0 * self.over / known if known else 0.0

    @property
    def states(self) -> Counter[str]:
        """How many jobs ended in each state."""
        counted: Counter[str] = Counter()
        for (_, state), line in self.lines.items():
            counted[state] += line.jobs
        return counted

    def rows(self) -> list[dict[str, object]]:
        """The table: a row a tool and state, durations in seconds."""
        return [
            {
                "tool": tool,
                "state": state,
                "jobs": line.jobs,
                "retries": line.retries,
                "mean seconds": round(line.seconds / line.jobs, 3),
                "longest seconds": round(line.longest, 3),
            }
            for (tool, state), line in sorted(self.lines.items())
        ]

    def report(self, name: str) -> str:
        """The report, in Markdown."""
        states = ", ".join(f"{count:,} {state}" for state, count in self.states.most_common())
        completed = self.states["Completed"]
        share = f"{completed / self.over:.1%}" if self.over else "none"
        lines = [
            f"# {name}",
            f"{self.over:,} of {max(self.submitted, self.over):,} jobs are over: {states or 'none'}.",
            f"Completed: {share}. Retries: {self.retries:,}.",
        ]
        if self.failures:
            lines += ["## Failures", "| tool | error | job |\n| --- | --- | --- |\n" + self._failure_rows()]
            if (more := self._failed() - len(self.failures)) > 0:
                lines.append(f"... and {more:,} more.")
        return "\n\n".join(lines) + "\n"

    def _failure_rows(self) -> str:
        return "\n".join(
            f"| {_in_cell(each.tool)} | {_in_cell(_error(each))} | {_in_cell(each.job_id)} |" for each in self.failures
        )

    def _failed(self) -> int:
        return self.over - self.states["Completed"] - self.states["Cancelled"]


def _error(failure: JobSnapshot) -> str:
    text = f"{failure.error_code}: {failure.message or ''}"
    return text if len(text) <= 200 else f"{text[:199]}…"


def _in_cell(text: str) -> str:
    """As Markdown shows it in a cell of a table: `<class 'dict'>` would be taken for HTML, and not be seen."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")
