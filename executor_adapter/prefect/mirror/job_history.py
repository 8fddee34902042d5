"""The history of a job that the supervisor drives, as state events of the task run that shows it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from executor_adapter.error_facts import ErrorFacts
from executor_adapter.job import TERMINAL, Job, JobStatus, RetryPolicy, Transition, function_reference, uuid7
from executor_adapter.prefect.mirror.history import TaskRunHistory
from executor_adapter.prefect.mirror.state_events import (
    CLOCK_RESOLUTION_SECONDS,
    MAX_MESSAGE_LENGTH,
    NO_PREVIOUS_STATE,
    Change,
    FlowRunFacts,
    StateFields,
    iso,
    previous_state,
    quoted,
)
from executor_adapter.prefect.mirror.states import (
    StateKind,
    awaiting_retry_message,
    failure_kind,
    failure_message,
    state_kind,
)
from executor_adapter.prefect.options.retries import prefect_retry_options

NO_FLOW_RUN = UUID("0192d1c1-58a4-7c5e-9d3b-6f1c9a7e4b20")
"""Namespace for the ids of task runs without a flow run."""

MAX_NAMED_ID_LENGTH = 24
"""Longest job id that a task run's name shows whole; of a longer one it shows the end."""

SHORT_ID_LENGTH = 8


class Step(NamedTuple):
    """A transition, with those facts of the job that may change before the event is sent."""

    status: JobStatus
    at: float
    attempt: int
    error: ErrorFacts | None
    retry_at: float | None
    node: str | None = None
    """The host on which the attempt begins, if that is another one."""


def step_of(transition: Transition) -> Step:
    """Return what has to be remembered of a transition. Runs on the supervisor's thread, so it is quick."""
    job, _, status, at, attempt, error = transition
    state = job.state
    if status in TERMINAL:
        at = state.completed_at or at
    elif status is JobStatus.RUNNING:
        at = (state.started_at or at) if attempt <= 1 else at
        if job.live.assignment is not None:
            return Step(status, at, attempt, error, state.retry_at, job.live.assignment.node)
    return Step(status, at, attempt, error, state.retry_at)


class JobHistory(TaskRunHistory[Step]):
    """One job's task run: its facts, its unsent transitions, and its times up to the last event."""

    __slots__ = (
        *("name", "task_key", "dynamic_key", "policy", "created_at"),
        *("_max_attempts", "_kind", "_last_at", "_running_since", "_started_at", "_run_seconds"),
    )

    def __init__(self, job: Job, task_run_id: str) -> None:
        job_id = job.job_id
        super().__init__(task_run_id, job_id)
        label, self.task_key = _function_facts(job.function)
        shown_id = job_id if len(job_id) <= MAX_NAMED_ID_LENGTH else job_id[-SHORT_ID_LENGTH:]
        self.name = quoted(f"{label}-{shown_id}")
        self.dynamic_key = quoted(job_id)
        self.policy = _policy_json(job.policy)
        self._max_attempts = job.policy.retry_attempts + 1
        self.created_at = job.state.created_at
        self._kind: StateKind | None = None
        self._last_at = 0.0
        self._running_since: float | None = None
        self._started_at = job.state.started_at  # Set already for a job that was recovered from a store.
        self._run_seconds = 0.0

    @property
    def shown_name(self) -> str:
        """The task run's name as plain text; `name` is the same as JSON."""
        name: str = json.loads(self.name)
        return name

    def add(self, step: Step) -> None:
        """Append a transition."""
        self.unsent += (step,)
        self.is_finished = step.status in TERMINAL

    def skip(self, step: Step) -> None:
        """Add the step to the task run's times, without an event."""
        self._advance(step)

    def _advance(self, step: Step) -> None:
        # The server ignores a state that is not newer than the last one, and a clock may be set back.
        at = self._last_at = round(max(step.at, self._last_at + CLOCK_RESOLUTION_SECONDS), 6)
        if self._running_since is not None:
            self._run_seconds += max(0.0, at - self._running_since)
            self._running_since = None
        if step.status is JobStatus.RUNNING:
            self._running_since = at
            self._started_at = self._started_at or at
        self._kind = self._kind_of(step)

    def change_of(self, step: Step, flow: FlowRunFacts) -> Change:
        """Return the change that a step is, with the task run's times up to it."""
        left = self._kind
        self._advance(step)
        assert self._kind is not None
        (kind, name), at, message = self._kind, iso(self._last_at), quoted(self.message_of(step)[:MAX_MESSAGE_LENGTH])
        due_at = step.retry_at if step.status is JobStatus.RETRYING else None
        details = "{}" if due_at is None else f'{{"scheduled_time":"{iso(due_at)}"}}'
        return Change(
            self._last_at,
            StateFields(uuid7(), at, kind.value, name, message, details),
            NO_PREVIOUS_STATE if left is None else previous_state(left.type.value, left.name),
            step.attempt,
            self.name,
            self._task_run(step, at, flow),
        )

    def _task_run(self, step: Step, at: str, flow: FlowRunFacts) -> str:
        """Return the task run as JSON; `at` is the time of the step in the server's format."""
        times = f'"expected_start_time":"{iso(self.created_at)}","total_run_time":{self._run_seconds:.6f}'
        if (started := self._started_at) is not None:
            times += f',"start_time":"{at if started == self._last_at else iso(started)}"'
        if step.status in TERMINAL:
            times += f',"end_time":"{at}"'
        return (
            f'{{"name":{self.name},"task_key":{self.task_key},"dynamic_key":{self.dynamic_key},'
            f'"empirical_policy":{self.policy},"tags":{flow.tags},"labels":{{}},"task_inputs":{{}},'
            f'"run_count":{step.attempt},"flow_run_run_count":{flow.run_count},{times}}}'
        )

    def _kind_of(self, step: Step) -> StateKind:
        if step.error is not None and step.status in TERMINAL:
            return failure_kind(step.error)
        return state_kind(step.status, attempt=step.attempt)

    def message_of(self, step: Step) -> str:
        """Return the message of the state that a step leads to."""
        if step.error is None:
            return "" if step.node is None else f"on {step.node}"
        if step.status is JobStatus.RETRYING:
            return awaiting_retry_message(step.error, attempt=step.attempt, attempts=self._max_attempts)
        return failure_message(step.error) if step.status in TERMINAL else ""


class GroupHistory(JobHistory):
    """The task run of a group of jobs. It has the function of the first one, and a number."""

    __slots__ = ("summary",)

    def __init__(self, flow_run_id: UUID | None, first: Job, number: int) -> None:
        super().__init__(first, uuid5_text(flow_run_id or NO_FLOW_RUN, f"group {number} of {first.job_id}"))
        label, _ = _function_facts(first.function)
        self.job_id = f"group {number} of {first.job_id}"
        self.name = quoted(f"{label}-group-{number}")
        self.dynamic_key = quoted(self.job_id)
        self.policy = _policy_json(_NO_RETRIES)
        self.summary = ""
        """How its jobs have ended: the message of its final state."""

    def message_of(self, step: Step) -> str:
        return self.summary if step.status in TERMINAL else ""


_NO_RETRIES = RetryPolicy(retry_attempts=0)


def task_run_id(flow_run_id: UUID | None, job: Job) -> str:
    """Return the id of a job's task run.

    It depends on the flow run and the job's id alone, so that a retried flow run finds the same task runs. Without a
    flow run it depends on the job's id and creation time, and stays the same when another host takes the job over.
    """
    if flow_run_id is not None:
        return uuid5_text(flow_run_id, job.job_id)
    return uuid5_text(NO_FLOW_RUN, f"{job.job_id} {job.state.created_at:.6f}")  # An id may be used again.


def uuid5_text(namespace: UUID, name: str) -> str:
    """Return `str(uuid.uuid5(namespace, name))` (RFC 9562) in half the time, since there are very many jobs."""
    digest = hashlib.sha1(namespace.bytes + name.encode(), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


@functools.lru_cache(maxsize=64)
def _function_facts(function: Callable[..., Any] | str) -> tuple[str, str]:
    """Return the name that a function's task runs start with, and their task key as JSON."""
    reference = function if isinstance(function, str) else function_reference(function)
    return reference.rpartition(":")[2].rpartition(".")[2], quoted(reference)


@functools.lru_cache(maxsize=64)
def _policy_json(policy: RetryPolicy) -> str:
    """Return the retry policy as the task run's `empirical_policy`."""
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
