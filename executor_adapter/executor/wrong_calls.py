"""Says what is wrong with a call of a JobExecutor that does not fit, such as `submit(function, 1)`."""

from __future__ import annotations

from typing import Any, get_args

from executor_adapter.job import Job, PoolName, call_text, explain_calls, job_instead


def _job_or_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Say which Job to submit, or how to call the function, where the call has no fields of a Job."""
    job = job_instead(args, kwargs)
    if job is None or kwargs.keys() & Job.model_fields:
        return job
    return f"{job}, or use {call_text('call', args, kwargs)}"


def _by_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Say how to give an option that was given by position."""
    if not args:
        return None
    pool = args[0] if args[0] in get_args(PoolName) else "process"
    return f"it takes options by name, such as pool={pool!r}"


def _field_of_jobs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Say where a field of Job belongs that was given to the executor; None where there is none."""
    name = next((name for name in kwargs if name in Job.model_fields), None)
    return None if name is None else f"{name} is a field of Job: give it to each Job, or set job.{name} in config.yaml"


explain_executor_calls = explain_calls(
    __init__=_field_of_jobs, submit=_job_or_call, run=job_instead, options=_by_name, as_executor=_by_name
)
"""Decorates the class."""
