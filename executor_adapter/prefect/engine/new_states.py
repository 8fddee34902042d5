"""Makes states as Prefect's `Pending()` and `Running()` make them, at a quarter of the cost: there are two a task run.

A state is a copy of one that Prefect has made, with an id and a time of its own. Nothing of it needs to be validated
again. Within an OpenTelemetry span Prefect makes the state itself, since the state names the span.
"""

from __future__ import annotations

import copy
import functools
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

from opentelemetry import trace
from prefect.client.schemas.objects import State
from prefect.states import Running

from executor_adapter.job import uuid7

T = TypeVar("T", bound=datetime)


def is_traced() -> bool:
    """Return whether the caller is within an OpenTelemetry span."""
    return trace.get_current_span().get_span_context().is_valid


def now_like(sample: T) -> T:
    """Return the time now, in UTC, of the class that Prefect has given `sample`."""
    now = datetime.now(UTC)
    return type(sample)(
        now.year, now.month, now.day, now.hour, now.minute, now.second, now.microsecond, tzinfo=sample.tzinfo
    )


def copy_state(sample: State, task_run_id: UUID | None = None) -> State:
    """Return a new state like `sample`, which begins now; `task_run_id` is the task run that enters it."""
    state = copy.copy(sample)
    state.id = UUID(uuid7())
    state.timestamp = now_like(sample.timestamp)
    state.state_details = copy.copy(sample.state_details)
    state.state_details.task_run_id = task_run_id
    return state


def running() -> State:
    """Return a new Running state."""
    return Running() if is_traced() else copy_state(_first_running())


@functools.cache
def _first_running() -> State:
    return Running()
