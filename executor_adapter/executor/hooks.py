"""The methods of JobExecutor that a subclass may override."""

from __future__ import annotations

import asyncio
from typing import Any

from executor_adapter.exceptions import InvalidJobError, JobTimeoutError
from executor_adapter.job import Job
from executor_adapter.supervision import HookedExecution, Supervisor


class ExecutionHooks:
    """Defines how one attempt runs, in methods that can be overridden.

    Where a subclass overrides any of them, every attempt passes through `execute_job`, on an event loop of the
    executor's; otherwise the supervisor runs attempts itself, without an event loop.
    """

    _hooked: HookedExecution | None
    """Runs attempts through these methods; None where no subclass overrides any."""

    async def execute_job(self, job: Job) -> Any:
        """Run one attempt: call the hooks, apply `max_runtime`, return the value or raise the exception.

        Where a subclass overrides this method, its timeout is the one that counts.
        """
        await self.pre_execution_hook(job)
        try:
            result = await self._within_max_runtime(job)
        except Exception as error:
            await self.error_hook(job, error)
            raise
        await self.post_execution_hook(job, result)
        return result

    async def _within_max_runtime(self, job: Job) -> Any:
        try:
            async with asyncio.timeout(job.max_runtime) as limit:
                return await self._execute_function(job)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise JobTimeoutError(f"ran longer than max_runtime={job.max_runtime} s") from error

    async def _execute_function(self, job: Job) -> Any:
        """Run the function itself in the job's pool, without a time limit.

        Cancelling it returns once the work is dead or, in a thread that cannot be stopped, abandoned.
        """
        if self._hooked is None:
            raise InvalidJobError("execute_job runs inside the executor: submit the job instead of calling it")
        return await self._hooked.attempt(job)

    async def pre_execution_hook(self, job: Job) -> None:
        """Do something before each attempt, once it has a slot."""

    async def post_execution_hook(self, job: Job, result: Any) -> None:
        """Do something after each attempt that returned."""

    async def error_hook(self, job: Job, error: Exception) -> None:
        """Do something after each attempt that failed."""


_OVERRIDABLE = ("execute_job", "_execute_function", "pre_execution_hook", "post_execution_hook", "error_hook")


def hooked_execution(kind: type[ExecutionHooks], supervisor: Supervisor) -> HookedExecution | None:
    """Return what runs attempts through the methods that `kind` overrides; None where it overrides none."""
    if all(getattr(kind, name) is getattr(ExecutionHooks, name) for name in _OVERRIDABLE):
        return None
    return HookedExecution(supervisor, applies_max_runtime=kind.execute_job is ExecutionHooks.execute_job)
