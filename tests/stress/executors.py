"""The executors of a plan: their settings, and subclasses with hooks."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from executor_adapter import Job, JobExecutor
from executor_adapter.config import ExecutorSettings, MonitoringSettings, Settings, StoreSettings


class OnPurposeError(Exception):
    """Raised by callbacks, observers, hooks, blocks and programs."""


def settings(given: Mapping[str, Any]) -> Settings:
    """Return Settings with the values that are given; nothing comes from a configuration of the user's."""
    executor = {name: given[name] for name in _OF_EXECUTOR if given.get(name) is not None}
    store = {name: given[name] for name in ("recover_every", "pickle_arguments") if name in given}
    if given.get("lease") is not None:
        store["lease"] = given["lease"]
    return Settings(
        executor=ExecutorSettings(**executor),
        store=StoreSettings(functions=("*",), pickle_key=SecretStr("key-of-the-stress-runs"), **store),
        monitoring=MonitoringSettings(metrics_port=given.get("metrics_port")),
    )


_OF_EXECUTOR = ("kill_grace", "start_method", "max_jobs_per_worker")


def is_chosen(job: Job) -> bool:
    """Return whether a hook does something to this job: for about half of them."""
    return zlib.crc32(job.job_id.encode()) % 2 == 0


class Awaiting(JobExecutor):
    async def pre_execution_hook(self, job: Job) -> None:
        await asyncio.sleep(0)

    async def post_execution_hook(self, job: Job, result: Any) -> None:
        await asyncio.sleep(0)

    async def error_hook(self, job: Job, error: Exception) -> None:
        await asyncio.sleep(0)


class Slow(JobExecutor):
    async def pre_execution_hook(self, job: Job) -> None:
        await asyncio.sleep(0.02)

    async def error_hook(self, job: Job, error: Exception) -> None:
        await asyncio.sleep(0.02)


class RaisingBefore(JobExecutor):
    async def pre_execution_hook(self, job: Job) -> None:
        if is_chosen(job):
            raise OnPurposeError("a hook")


class RaisingAfter(JobExecutor):
    async def post_execution_hook(self, job: Job, result: Any) -> None:
        if is_chosen(job):
            raise OnPurposeError("a hook")


class Twice(JobExecutor):
    async def execute_job(self, job: Job) -> Any:
        async with asyncio.timeout(job.max_runtime):
            await self._execute_function(job)
            return await self._execute_function(job)


class OwnResult(JobExecutor):
    async def execute_job(self, job: Job) -> Any:
        return "its own" if is_chosen(job) else await super().execute_job(job)


class Cancelling(JobExecutor):
    async def pre_execution_hook(self, job: Job) -> None:
        if is_chosen(job):
            self.cancel(job.job_id)
            await asyncio.sleep(0.01)


class InThread(JobExecutor):
    async def pre_execution_hook(self, job: Job) -> None:
        await asyncio.to_thread(time.sleep, 0.001)

    async def post_execution_hook(self, job: Job, result: Any) -> None:
        await asyncio.to_thread(time.sleep, 0.001)


KINDS: Mapping[str | None, type[JobExecutor]] = {
    None: JobExecutor,
    "awaiting": Awaiting,
    "slow": Slow,
    "raising before": RaisingBefore,
    "raising after": RaisingAfter,
    "twice": Twice,
    "own result": OwnResult,
    "cancelling": Cancelling,
    "in a thread": InThread,
}
"""By the name of its hooks in a plan."""
