"""The options of a job task: every field of a Job that is not of one call alone, and every option of a Prefect task.

Three things have a name on both sides. Prefect's is translated, and giving both is refused:

    retries               retry_attempts
    retry_delay_seconds   retry: that delay before every retry, as Prefect means it, plus retry_jitter_factor
    timeout_seconds       max_runtime
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from prefect import Task
from pydantic import ValidationError

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import Job
from executor_adapter.retry import RetryPolicy

JOB_OPTIONS = frozenset(Job.model_fields) - {"function", "args", "kwargs", "job_id"}
TASK_OPTIONS = frozenset(inspect.signature(Task.__init__).parameters) - {"self", "fn"}
TRANSLATED = {
    "retries": ("retry_attempts", "retry"),
    "retry_delay_seconds": ("retry_delay", "retry"),
    "retry_jitter_factor": ("retry",),
    "timeout_seconds": ("max_runtime",),
}
"""Prefect's options that are not left to Prefect, and the fields of a Job that say the same."""

SHOWN_DELAYS = 50
"""Prefect takes no more delays than these for one task."""


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a Job, and the options that Prefect's Task takes, Prefect's names translated.

    Raises:
        TypeError: an option is neither.
        InvalidJobError: an option is given under both of its names, or under Prefect's with a value that cannot hold.
    """
    for name in options:
        if name not in JOB_OPTIONS and name not in TASK_OPTIONS:
            raise TypeError(_unknown(name))
    for theirs, ours in TRANSLATED.items():
        for name in ours:
            if theirs in options and name in options:
                raise InvalidJobError(f"{theirs} and {name} say the same: give one of them")
    job = {name: value for name, value in options.items() if name in JOB_OPTIONS}
    task = {name: value for name, value in options.items() if name in TASK_OPTIONS and name not in TRANSLATED}
    return job | _translated(options), task


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, JOB_OPTIONS | TASK_OPTIONS, n=1)
    hint = f": did you mean {near[0]}?" if near else ": it is neither a field of Job nor an option of a Prefect task"
    return f"a job task has no option {name!r}{hint}"


def _translated(options: Mapping[str, Any]) -> dict[str, Any]:
    job: dict[str, Any] = {}
    if options.get("timeout_seconds") is not None:
        job["max_runtime"] = options["timeout_seconds"]
    if options.get("retry_delay_seconds") is not None:
        job["retry"] = _constant_delay(options)
    elif options.get("retry_jitter_factor") is not None:
        raise InvalidJobError("retry_jitter_factor needs retry_delay_seconds: or give retry=RetryPolicy(jitter=...)")
    elif options.get("retries") is not None:
        job["retry_attempts"] = options["retries"]
    return job


def _constant_delay(options: Mapping[str, Any]) -> RetryPolicy:
    delay = options["retry_delay_seconds"]
    if isinstance(delay, bool) or not isinstance(delay, int | float):
        raise InvalidJobError(
            f"retry_delay_seconds={delay!r} is no number of seconds: for growing delays give retry=RetryPolicy(...)"
        )
    attempts = options.get("retries", options.get("retry_attempts", Job.model_fields["retry_attempts"].default))
    jitter = min(1.0, options.get("retry_jitter_factor") or 0.0)
    return RetryPolicy(
        retry_attempts=attempts, retry_delay=delay, backoff_coefficient=1.0, max_delay=max(900.0, delay), jitter=jitter
    )


def merge_options(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Job options with `changes` made: what was said last of the retries counts, under whichever name."""
    merged = {**before, **changes}
    policy = before.get("retry")
    if "retry" in changes or policy is None:
        return merged
    changed = {name: changes[name] for name in ("retry_attempts", "retry_delay") if name in changes}
    return merged | {"retry": policy.model_copy(update=changed)}


def check_job_options(function: Callable[..., Any], options: Mapping[str, Any]) -> Job:
    """A job of `function` with `options`, never run: made to see that one can be.

    Raises:
        InvalidJobError: a value is none that could ever work.
    """
    try:
        return Job(function=function, **options)
    except ValidationError as error:
        name = getattr(function, "__qualname__", repr(function))
        raise InvalidJobError(f"job task {name}: {_in_one_line(error)}") from None


def _in_one_line(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, found['loc']))}={found['input']!r}: {found['msg']}" for found in error.errors()
    )


def shown_retries(policy: RetryPolicy) -> dict[str, Any]:
    """What the task run's `empirical_policy` says of the retries; the delays without their jitter."""
    delays: list[float] = []
    delay = policy.retry_delay
    for _ in range(min(policy.retry_attempts, SHOWN_DELAYS)):
        delays.append(min(delay, policy.max_delay))
        delay = min(delay * policy.backoff_coefficient, policy.max_delay)
    return {
        "retries": policy.retry_attempts,
        "retry_delay_seconds": delays or None,
        "retry_jitter_factor": policy.jitter if delays else None,
    }
