"""What the settings say of jobs: fields that a job left open, and the limits of its tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from executor_adapter.config import Settings
from executor_adapter.config_sections import retry_policy
from executor_adapter.functions import is_coroutine_function
from executor_adapter.job import Job
from executor_adapter.throttle import ToolLimit


class JobDefaults:
    """Fills in what a job left open: of its tool's section first, then of the section `job`."""

    def __init__(self, settings: Settings) -> None:
        self._general = settings.job.given()
        self._has_memory_limits = settings.executor.start_method == "guardian"
        self._of_tool = {name: tool.job.over(settings.job).given() for name, tool in settings.tools.items()}
        self.any = bool(self._general) or any(self._of_tool.values())
        """Whether there is anything to fill in: most programs ask each job in vain otherwise."""

    def fill_in(self, job: Job) -> None:
        """Set what the settings say and the job does not; harmless when done twice."""
        said = self._of_tool.get(job.tool_name or "", self._general)
        for field, value in said.items():
            if field not in job.model_fields_set and field != "retry" and self._can_hold(job, field):
                setattr(job, field, value)
        if "retry" in said and "retry" not in job.model_fields_set:
            job.retry = retry_policy(said["retry"], job.retry_attempts, job.retry_delay)

    def _can_hold(self, job: Job, field: str) -> bool:
        """Whether the job's pool can hold that limit: a default is for those that can, an explicit one is refused."""
        if field == "memory_limit":
            return job.pool == "process" and self._has_memory_limits
        return field != "soft_timeout" or (job.pool != "coroutine" and not is_coroutine_function(job.function))


def tool_limits(settings: Settings, given: Mapping[str, ToolLimit] | None) -> dict[str, ToolLimit]:
    """The limits of each tool that has any: those `given`, else its section's; each with its share left unused."""
    limits = {
        name: ToolLimit(max_concurrent=tool.max_concurrent, rate=tool.rate, burst=tool.burst, buffer=tool.buffer)
        for name, tool in settings.tools.items()
        if tool.max_concurrent is not None or tool.rate is not None
    } | dict(given or {})
    buffer = settings.collection.rate_limit_buffer
    return {name: replace(limit, buffer=buffer) if limit.buffer is None else limit for name, limit in limits.items()}
