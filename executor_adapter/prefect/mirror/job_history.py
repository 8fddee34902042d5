"""What a job has been through, as the task run that shows it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from executor_adapter.job.functions import function_reference
from executor_adapter.job.model import Job
from executor_adapter.job.retry import RetryPolicy
from executor_adapter.job.status import TERMINAL, JobStatus
from executor_adapter.job.transition import Transition
from executor_adapter.prefect.mirror.history import TaskRunHistory
from executor_adapter.prefect.mirror.state_events import TICK, Change, FlowRunFacts, StateEvent, quoted, state_event
from executor_adapter.prefect.mirror.states import (
    StateKind,
    awaiting_retry_message,
    failure_kind,
    failure_message,
    state_kind,
)
from executor_adapter.prefect.options.retries import prefect_retry_options

NO_FLOW_RUN = UUID("0192d1c1-58a4-7c5e-9d3b-6f1c9a7e4b20")
"""Namespace of the task runs that belong to no flow run."""

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
    state = job.state
    if status in TERMINAL:
        at = state.completed_at or at
    elif status is JobStatus.RUNNING and attempt <= 1:
        at = state.started_at or at
    return Step(status, at, attempt, error, state.retry_at)


class JobHistory(TaskRunHistory[Step]):
    """One job's task run: its facts, what is not told of it yet, and its times up to there."""

    __slots__ = (
        *("id", "name", "task_key", "dynamic_key", "policy", "created_at"),
        *("_attempts", "_kind", "_last_at", "_running_since", "_start", "_total"),
    )

    def __init__(self, job: Job, task_run_id: str) -> None:
        job_id = job.job_id
        super().__init__(job_id)
        label, self.task_key = _function_facts(job.function)
        shown = job_id if len(job_id) <= SHOWN_ID else job_id[-8:]
        self.id = task_run_id
        self.name = quoted(f"{label}-{shown}")
        self.dynamic_key = quoted(job_id)
        self.policy = _policy_json(job.policy)
        self._attempts = job.policy.retry_attempts + 1
        self.created_at = job.state.created_at
        self._kind: StateKind | None = None
        self._last_at = 0.0
        self._running_since: float | None = None
        self._start = job.state.started_at  # that of a recovered job lies before
        self._total = 0.0

    @property
    def shown_name(self) -> str:
        """The task run's name; `name` is JSON, as all that it says of the task run (`TaskRunFacts`)."""
        name: str = json.loads(self.name)
        return name

    def add(self, step: Step) -> None:
        """Note one more change, to be told."""
        self.unsent += (step,)
        self.is_over = step.status in TERMINAL

    def pass_over(self, step: Step) -> None:
        """Take the step's time into account."""
        # The server takes only what is newer than what it has, and resolves microseconds; clocks may be set back.
        at = self._last_at = round(max(step.at, self._last_at + TICK), 6)
        if self._running_since is not None:
            self._total += max(0.0, at - self._running_since)
            self._running_since = None
        if step.status is JobStatus.RUNNING:
            self._running_since = at
            self._start = self._start or at
        self._kind = self._kind_of(step)

    def tell(self, step: Step, flow: FlowRunFacts) -> StateEvent:
        """That of the step, with the times up to there."""
        previous = self._kind
        self.pass_over(step)
        assert self._kind is not None
        at = self._last_at
        change = Change(
            self._kind,
            at,
            previous=previous,
            message=self._message(step),
            scheduled=step.retry_at if step.status is JobStatus.RETRYING else None,
            run_count=step.attempt,
            expected=self.created_at,
            start=self._start,
            end=at if step.status in TERMINAL else None,
            total=self._total,
        )
        return state_event(self, change, flow, self.job_id)

    def _kind_of(self, step: Step) -> StateKind:
        if step.error is not None and step.status in TERMINAL:
            return failure_kind(step.error)
        return state_kind(step.status, attempt=step.attempt)

    def _message(self, step: Step) -> str:
        if step.error is None:
            return ""
        if step.status is JobStatus.RETRYING:
            return awaiting_retry_message(step.error, attempt=step.attempt, attempts=self._attempts)
        return failure_message(step.error) if step.status in TERMINAL else ""


def task_run_id(flow_run_id: UUID | None, job: Job) -> str:
    """The id of a job's task run: the same each time within a flow run; without one also in the next host to run it."""
    if flow_run_id is not None:
        return uuid5_text(flow_run_id, job.job_id)
    return uuid5_text(NO_FLOW_RUN, f"{job.job_id} {job.state.created_at:.6f}")  # an id may be used again


def uuid5_text(namespace: UUID, name: str) -> str:
    """`str(uuid.uuid5(namespace, name))` (RFC 9562), in half the time: there is one for each of very many jobs."""
    digest = hashlib.sha1(namespace.bytes + name.encode(), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


@functools.lru_cache(maxsize=64)
def _function_facts(function: Callable[..., Any] | str) -> tuple[str, str]:
    """What the task runs of a function are called by, and their task key as JSON."""
    reference = function if isinstance(function, str) else function_reference(function)
    return reference.rpartition(":")[2].rpartition(".")[2], quoted(reference)


@functools.lru_cache(maxsize=64)
def _policy_json(policy: RetryPolicy) -> str:
    shown = prefect_retry_options(policy)
    return json.dumps(
        {
            "max_retries": 0,
            "retry_delay_seconds": 0.0,
            "retries": shown["retries"],
            "retry_delay": shown["retry_delay_seconds"],
            "retry_jitter_factor": shown["retry_jitter_factor"],
        }
    )
