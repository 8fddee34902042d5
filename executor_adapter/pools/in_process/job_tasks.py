"""Tasks of an event loop that several jobs share: no job can cancel what belongs to another one."""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar
from typing import Any

logger = logging.getLogger("executor_adapter.coroutine")


class TaskOwner:
    """One call on a shared loop, as the owner of all tasks that it makes."""

    __slots__ = ("is_running", "job_id")

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.is_running = True


current_owner: ContextVar[TaskOwner | None] = ContextVar("task_owner", default=None)
"""Owns the tasks that the code of this context makes."""


class JobTask(asyncio.Task[Any]):
    """A task that ignores a cancel that comes from another job's code, as long as its own job runs.

    A timeout, a task group or the pool cancels from the job's own context or from none. The class is the task factory
    of a shared loop: a task belongs to the call whose code asks for it, where no other `owner` is named.
    """

    __slots__ = ("owner",)

    def __init__(self, loop: Any, coroutine: Any, *, owner: TaskOwner | None = None, **options: Any) -> None:
        self.owner = owner or current_owner.get()
        super().__init__(coroutine, loop=loop, **options)

    def cancel(self, msg: Any | None = None) -> bool:
        caller = current_owner.get()
        if caller is None or caller is self.owner or self.owner is None or not self.owner.is_running:
            return super().cancel(msg)
        logger.warning(
            "job %s cancelled a task of job %s: ignored, since each job may cancel only its own tasks",
            caller.job_id,
            self.owner.job_id,
            extra={"job_id": caller.job_id},
        )
        return False
