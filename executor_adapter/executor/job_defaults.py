"""Applies the settings to jobs: fields that a job leaves open, and the limits of its tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from executor_adapter.config import Settings, retry_policy
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import PROCESS_POOLS, Job, ToolLimit, is_coroutine_function


class JobDefaults:
    """Fills in a job's open fields: from its tool's section first, then from the section `job`."""

    def __init__(self, settings: Settings) -> None:
        self._general = settings.job.given()
        self._has_memory_limits = settings.executor.start_method == "guardian"
        self._of_tool = {name: tool.job.over(settings.job).given() for name, tool in settings.tools.items()}
        self.any = bool(self._general) or any(self._of_tool.values())
        """Whether there is anything to fill in: most programs have no such settings, and skip the call."""

    def fill_in(self, job: Job) -> None:
        """Set the fields that the settings name and the job does not. Calling it twice does no harm.

        Raises:
            InvalidJobError: A field of the job contradicts the settings.
        """
        defaults = self._of_tool.get(job.tool_name or "", self._general)
        later = {"retry", "soft_timeout"}
        for field, value in defaults.items():
            if field not in job.model_fields_set and field not in later and self._can_hold(job, field):
                _set(job, field, value)
        if "soft_timeout" in defaults:
            self._fill_in_soft_timeout(job, defaults["soft_timeout"])
        if "max_runtime" in defaults and job.soft_timeout is not None:
            _check_own_soft_timeout(job, defaults["max_runtime"])
        if "retry" in defaults and "retry" not in job.model_fields_set:
            _set(job, "retry", retry_policy(defaults["retry"], job.retry_attempts, job.retry_delay))
        elif (policy := job.retry) and not policy.retry_attempts and "retry_attempts" not in policy.model_fields_set:
            _set(job, "retry", policy.model_copy(update={"retry_attempts": job.retry_attempts}))

    def _fill_in_soft_timeout(self, job: Job, seconds: float | None) -> None:
        """Set soft_timeout, unless the job's own max_runtime ends it before."""
        ends_before = seconds is not None and job.max_runtime is not None and job.max_runtime <= seconds
        if "soft_timeout" not in job.model_fields_set and not ends_before and self._can_hold(job, "soft_timeout"):
            _set(job, "soft_timeout", seconds)

    def _can_hold(self, job: Job, field: str) -> bool:
        """Return whether the job's pool supports that limit; if not, a default is skipped, and a job's own refused."""
        if field == "memory_limit":
            return job.pool in PROCESS_POOLS and (job.pool != "process" or self._has_memory_limits)
        return field != "soft_timeout" or (job.pool != "coroutine" and not is_coroutine_function(job.function))


def _check_own_soft_timeout(job: Job, max_runtime: float | None) -> None:
    # Checked here because afterwards it is unknown which of the two fields came from the settings.
    soft = job.soft_timeout
    if soft is not None and max_runtime is not None and job.max_runtime == max_runtime <= soft:
        raise InvalidJobError(
            f"soft_timeout={soft} leaves no time before max_runtime={max_runtime} of the settings: "
            "give a shorter one, or a max_runtime of the job's own"
        )


def _set(job: Job, field: str, value: object) -> None:
    # As assignment does, but without validating again, for each job, what was validated with the settings.
    job.__dict__[field] = value
    job.model_fields_set.add(field)


def tool_limits(settings: Settings, given: Mapping[str, ToolLimit] | None) -> dict[str, ToolLimit]:
    """Return the limits of each tool: those `given`, or else its section's; each with its share that stays unused."""
    limits = {
        name: ToolLimit(max_concurrent=tool.max_concurrent, rate=tool.rate, burst=tool.burst, buffer=tool.buffer)
        for name, tool in settings.tools.items()
        if tool.max_concurrent is not None or tool.rate is not None
    } | dict(given or {})
    buffer = settings.collection.rate_limit_buffer
    return {name: replace(limit, buffer=buffer) if limit.buffer is None else limit for name, limit in limits.items()}
