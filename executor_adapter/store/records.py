"""A job made again from what is remembered of it."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.exceptions.display import shown
from executor_adapter.job.model import Job

if TYPE_CHECKING:
    from executor_adapter.store.base import JobRecord


def restore(record: JobRecord) -> Job:
    """The job as the record has it, its state included. Where its function is not stored, or cannot be unpickled here,
    a LostFunction stands for it."""
    try:
        job = Job(**given_fields(record))
    except ValueError:  # not to be had, or none that could run: it can be looked at all the same
        job = Job(**_shown_fields(record), function=LostFunction(record.function))
    live = job._live
    live.status = record.status
    live.attempt = record.attempt
    live.attempts = record.attempt_fields or None
    live.created_at = record.created_at
    live.started_at = record.started_at
    live.completed_at = record.completed_at
    live.retry_at = record.retry_at
    live.records_processed = record.records_processed
    live.progress = record.progress
    live.error_code = record.error_code
    live.error_message = record.error_message
    live.crashes = record.crashes
    return job


def given_fields(record: JobRecord) -> dict[str, Any]:
    """The fields of Job with which the job was made, its id included.

    Raises:
        InvalidJobError: its function is not stored, or cannot be unpickled here.
    """
    if record.call is None:
        raise InvalidJobError(f"job {record.job_id} was driven from outside: run it again there")
    fields: dict[str, Any] = _shown_fields(record) | json.loads(record.call)
    return fields if record.pickled is None else fields | _unpickled(record.job_id, record.pickled)


class LostFunction:
    """Stands for the function of a job that can be looked at, but not run."""

    def __init__(self, reference: str) -> None:
        self.__module__, _, self.__qualname__ = reference.partition(":")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise InvalidJobError(f"{self.__module__}:{self.__qualname__} is not stored: make a job with the function")


def _shown_fields(record: JobRecord) -> dict[str, Any]:
    return {
        "job_id": record.job_id,
        "job_type": record.job_type,
        "tool_name": record.tool_name,
        "metadata": dict(record.metadata),
        "priority": record.priority,
        "max_runtime": record.max_runtime,
    }


def _unpickled(job_id: str, pickled: bytes) -> dict[str, Any]:
    try:
        function, args, kwargs = pickle.loads(pickled)
    except Exception as error:
        raise InvalidJobError(
            f"job {job_id} cannot be unpickled here: {shown(error)}: run it where its code is"
        ) from error
    return {"function": function, "args": args, "kwargs": kwargs}
