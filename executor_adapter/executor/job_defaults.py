"""What the settings say of jobs: fields that a job left open, and the limits of its tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from executor_adapter.config import Settings, retry_policy
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job.functions import is_coroutine_function
from executor_adapter.job.model import Job
from executor_adapter.job.tool_limit import ToolLimit


class JobDefaults:
    """Fills in what a job left open: of its tool's section first, then of the section `job`."""

    def __init__(self, settings: Settings) -> None:
        self._general = settings.job.given()
        self._has_memory_limits = settings.executor.start_method == "guardian"
        self._of_tool = {name: tool.job.over(settings.job).given() for name, tool in settings.tools.items()}
        self.any = bool(self._general) or any(self._of_tool.values())
        """Whether there is anything to fill in: most programs ask each job in vain otherwise."""

    def fill_in(self, job: Job) -> None:
        """Set what the settings say and the job does not; harmless when done twice.

        Raises:
            InvalidJobError: what the job says itself does not go with what they say.
        """
        said = self._of_tool.get(job.tool_name or "", self._general)
        for field, value in said.items():
            if field not in job.model_fields_set and field not in _AFTER_OTHERS and self._can_hold(job, field):
                _set(job, field, value)
        if "soft_timeout" in said:
            self._fill_in_soft_timeout(job, said["soft_timeout"])
        if "max_runtime" in said and job.soft_timeout is not None:
            _check_own_soft_timeout(job, said["max_runtime"])
        if "retry" in said and "retry" not in job.model_fields_set:
            _set(job, "retry", retry_policy(said["retry"], job.retry_attempts, job.retry_delay))

    def _fill_in_soft_timeout(self, job: Job, seconds: float | None) -> None:
        """... unless the job has a max_runtime of its own that ends it before."""
        ends_before = seconds is not None and job.max_runtime is not None and job.max_runtime <= seconds
        if "soft_timeout" not in job.model_fields_set and not ends_before and self._can_hold(job, "soft_timeout"):
            _set(job, "soft_timeout", seconds)

    def _can_hold(self, job: Job, field: str) -> bool:
        """Whether the job's pool can hold that limit: a default is for those that can, an explicit one is refused."""
        if field == "memory_limit":
            return job.pool == "process" and self._has_memory_limits
        return field != "soft_timeout" or (job.pool != "coroutine" and not is_coroutine_function(job.function))


_AFTER_OTHERS = frozenset({"retry", "soft_timeout"})


def _check_own_soft_timeout(job: Job, max_runtime: float | None) -> None:
    # Here, where it is known who said what: afterwards both are the job's.
    soft = job.soft_timeout
    if soft is not None and max_runtime is not None and job.max_runtime == max_runtime <= soft:
        raise InvalidJobError(
            f"soft_timeout={soft} leaves no time before max_runtime={max_runtime} of the settings: "
            "give a shorter one, or a max_runtime of the job's own"
        )


def _set(job: Job, field: str, value: object) -> None:
    # As assignment does, which would check once more what the settings have checked, for each job.
    job.__dict__[field] = value
    job.model_fields_set.add(field)


def tool_limits(settings: Settings, given: Mapping[str, ToolLimit] | None) -> dict[str, ToolLimit]:
    """The limits of each tool that has any: those `given`, else its section's; each with its share left unused."""
    limits = {
        name: ToolLimit(max_concurrent=tool.max_concurrent, rate=tool.rate, burst=tool.burst, buffer=tool.buffer)
        for name, tool in settings.tools.items()
        if tool.max_concurrent is not None or tool.rate is not None
    } | dict(given or {})
    buffer = settings.collection.rate_limit_buffer
    return {name: replace(limit, buffer=buffer) if limit.buffer is None else limit for name, limit in limits.items()}
