"""The two schedulers, and a ready-made instance of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from executor_adapter.config import Stage
from executor_adapter.job import Job, is_coroutine_function
from executor_adapter.scheduler.base import BaseScheduler
from executor_adapter.scheduler.binding import accepts


class CollectionScheduler(BaseScheduler):
    """Runs collection jobs: coroutine functions on an event loop, others in threads."""

    section: ClassVar[Stage] = "collection"
    bound_metadata = ("collection_type",)

    async def add_manual_job(
        self,
        job_type: str,
        function: Callable[..., Any] | str,
        tool_name: str | None = None,
        collection_type: str = "manual",
        **kwargs: Any,
    ) -> str:
        """Queue a collection job and return its id. `kwargs` are the function's own arguments.

        The function also gets `tool_name` and `collection_type` if its signature accepts them.

        Raises:
            InvalidJobError: The function does not accept an argument, or the argument is named like a field of Job.
        """
        metadata = {"collection_type": collection_type}
        job = Job(job_type=job_type, function=function, tool_name=tool_name, metadata=metadata)
        return await self._add(job, kwargs)


class ProcessingScheduler(BaseScheduler):
    """Runs processing jobs: synchronous functions in processes, coroutine functions on an event loop."""

    section: ClassVar[Stage] = "processing"
    bound_metadata = ("processing_stage",)

    async def add_processing_job(
        self,
        function: Callable[..., Any] | str,
        tool_name: str | None = None,
        processing_stage: str | None = None,
        data: Any = None,
        **kwargs: Any,
    ) -> str:
        """Queue a processing job and return its id. `kwargs` are the function's own arguments.

        The function also gets `tool_name`, `processing_stage` and `data` if its signature accepts them.

        Raises:
            InvalidJobError: The function does not accept an argument, or the argument is named like a field of Job.
        """
        metadata = {} if processing_stage is None else {"processing_stage": processing_stage}
        job = Job(job_type="processing", function=function, tool_name=tool_name, metadata=metadata)
        if data is not None and accepts(function, "data"):
            job.kwargs["data"] = data
        return await self._add(job, kwargs)

    def _choose_pool(self, job: Job) -> None:
        if job.pool == "auto" and not is_coroutine_function(job.function):
            job.pool = "process"


collection_scheduler = CollectionScheduler()
processing_scheduler = ProcessingScheduler()
