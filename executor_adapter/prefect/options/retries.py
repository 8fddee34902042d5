"""Translates between Prefect's retry options and the retry policy that they mean.

retries               retry_attempts
retry_delay_seconds   delays: a number before every retry, a list one by one, or a callable that gives such a list
retry_jitter_factor   jitter: a share of the delay; Prefect's factors above 1 count as 1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prefect import Task

from executor_adapter.job import RetryPolicy

MAX_DELAYS = 50
"""Prefect accepts at most this many delays for one task."""

Delays = float | Sequence[float] | Callable[[int], Sequence[float]] | None


def policy_from_prefect(retries: int | None, delays: Delays, jitter: float | None, **fields: Any) -> RetryPolicy:
    """Return the policy that Prefect's options mean; `fields` are further fields of RetryPolicy.

    Without `retries` it has none, and leaves `retry_attempts` unset for the executor's settings to fill in.

    Raises:
        InvalidJobError: a delay is no number of seconds, or the jitter is negative.
    """
    given = delays(MAX_DELAYS if retries is None else retries) if callable(delays) else delays
    listed = given if isinstance(given, list | tuple) else (given or 0.0,)
    policy = RetryPolicy(retry_attempts=retries or 0, delays=tuple(listed), jitter=min(1.0, jitter or 0.0), **fields)
    if retries is None:
        policy.model_fields_set.remove("retry_attempts")
    return policy


def policy_of_task(task: Task[..., Any]) -> RetryPolicy:
    """Return the policy that a plain task asks for: its retries, all of which may follow crashes too."""
    retries, delays, jitter = task.retries, task.retry_delay_seconds, task.retry_jitter_factor
    return policy_from_prefect(retries, delays, jitter, crash_attempts=retries)


def prefect_retry_options(policy: RetryPolicy) -> dict[str, Any]:
    """Return the options that show `policy` in a task run's `empirical_policy`; the delays are without their jitter."""
    delays = [policy.delay_before(retry) for retry in range(1, min(policy.retry_attempts, MAX_DELAYS) + 1)]
    return {
        "retries": policy.retry_attempts,
        "retry_delay_seconds": delays[0] if len(set(delays)) == 1 else delays or None,
        "retry_jitter_factor": policy.jitter if delays else None,
    }
