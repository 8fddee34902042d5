"""What a job has been through, as the task run that shows it."""

from __future__ import annotations

import functools
import json
from json.encoder import encode_basestring_ascii as quoted
from typing import NamedTuple
from uuid import UUID, uuid5

from executor_adapter.job import TERMINAL, Job, JobStatus, Transition, function_reference
from executor_adapter.prefect.retries import shown_retries
from executor_adapter.prefect.state_events import TICK, Change, TaskRunFacts
from executor_adapter.prefect.states import (
    StateKind,
    awaiting_retry_message,
    failure_kind,
    failure_message,
    state_kind,
)
from executor_adapter.retry import RetryPolicy

SHOWN_ID = 24
"""Characters of a job's id that its task run's name shows; of a longer one the last eight."""


class Step(NamedTuple):
    """A transition, with what the job says at that moment and may have changed when the mirror comes to it."""

    status: JobStatus
    at: float
    attempt: int
    error: BaseException | None
    retry_at: float | None


def step_of(transition: Transition) -> Step:
    """What is to be remembered of a transition; on the supervisor's thread, so quick."""
    job, _, status, at, attempt, error = transition
    live = job._live
    if status in TERMINAL:
        at = live.completed_at or at
    elif status is JobStatus.RUNNING and attempt <= 1:
        at = live.started_at or at
    elif status is JobStatus.PENDING and not attempt:
        at = live.created_at
    return Step(status, at, attempt, error, live.retry_at)


class JobHistory:
    """One job's task run: its facts, its times so far, and the changes that are not sent yet."""

    __slots__ = (
        "_attempts", "_kind", "_last_at", "_running_since", "_start", "_total", "created_at", "facts", "is_over",
        "job_id", "unsent",
    )  # fmt: skip

    def __init__(self, job: Job, task_run_id: str) -> None:
        self.job_id = job.job_id
        self.facts = facts_of(job, task_run_id)
        self.unsent: list[Change] = []  # a few at most; an empty deque is six times as large
        self.is_over = False
        self._attempts = job.policy.retry_attempts + 1
        self.created_at = job._live.created_at
        self._kind: StateKind | None = None
        self._last_at = 0.0
        self._running_since: float | None = None
        self._start: float | None = None
        self._total = 0.0

    @property
    def name(self) -> str:
        """The task run's."""
        name: str = json.loads(self.facts.name)
        return name

    def add(self, step: Step) -> None:
        """Note one more change, to be sent."""
        # The server takes only what is newer than what it has, and resolves microseconds; clocks may be set back.
        at = self._last_at = round(max(step.at, self._last_at + TICK), 6)
        if self._running_since is not None:
            self._total += max(0.0, at - self._running_since)
            self._running_since = None
        if step.status is JobStatus.RUNNING:
            self._running_since = at
            self._start = self._start or at
        self.is_over = step.status in TERMINAL
        kind, message = self._shown(step)
        self.unsent.append(
            Change(
                kind,
                at,
                previous=self._kind,
                message=message,
                scheduled=step.retry_at if step.status is JobStatus.RETRYING else None,
                run_count=step.attempt,
                expected=self.created_at,
                start=self._start,
                end=at if self.is_over else None,
                total=self._total,
            )
        )
        self._kind = kind

    def _shown(self, step: Step) -> tuple[StateKind, str]:
        status, error = step.status, step.error
        if status is JobStatus.RETRYING and error is not None:
            return state_kind(status), awaiting_retry_message(error, attempt=step.attempt, attempts=self._attempts)
        if error is not None and status in TERMINAL:
            return failure_kind(error), failure_message(error)
        return state_kind(status, attempt=step.attempt), ""

    def leave_out_passed(self) -> int:
        """Forget the unsent changes that a final one has overtaken; how many."""
        left_out = len(self.unsent) - 1
        if left_out > 0:
            self.unsent = [self.unsent[-1]]
        return max(0, left_out)


def task_run_id(namespace: UUID, job_id: str) -> str:
    """The id of a job's task run: the same each time, within a flow run."""
    return str(uuid5(namespace, job_id))


def facts_of(job: Job, run_id: str) -> TaskRunFacts:
    """How the task run of a job is called, and what it is a run of."""
    function = job.function
    reference = function if isinstance(function, str) else function_reference(function)
    shown = job.job_id if len(job.job_id) <= SHOWN_ID else job.job_id[-8:]
    return TaskRunFacts(
        id=run_id,
        name=quoted(f"{reference.rpartition(':')[2].rpartition('.')[2]}-{shown}"),
        task_key=quoted(reference),
        dynamic_key=quoted(job.job_id),
        policy=_policy_json(job.policy),
    )


@functools.lru_cache(maxsize=64)
def _policy_json(policy: RetryPolicy) -> str:
    shown = shown_retries(policy)
    return json.dumps(
        {
            "max_retries": 0,
            "retry_delay_seconds": 0.0,
            "retries": shown["retries"],
            "retry_delay": shown["retry_delay_seconds"],
            "retry_jitter_factor": shown["retry_jitter_factor"],
        }
    )
