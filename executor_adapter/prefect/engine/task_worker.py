"""Runs job tasks in Prefect's own engines: those of a task worker, which runs what `delay` and `apply_async` scheduled.

A task worker uses Prefect's engine and no other. That engine asks its task for the function that makes an attempt, and
whether a failure may be retried. A JobTask answers with the objects of this module, so that each attempt is one of a
job, with its limits, and `retry.decide` decides on the next one. Everything else is the engine's: a job that waits for
a slot is shown as Running, and a crash as Failed.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.logging.loggers import get_run_logger
from prefect.states import Completed, Failed

from executor_adapter.job import RetryDecision
from executor_adapter.prefect.engine.engine import FORBIDDEN
from executor_adapter.prefect.engine.job_run import JobRun, driving, is_driven
from executor_adapter.prefect.engine.run import result_of_job

RetryCondition = Callable[[Task[..., Any], TaskRun, State[Any]], bool | Awaitable[bool]]


class SeenByEngine:
    """An attribute of a job task that Prefect's own engine, and code called by it, sees as `seen(task, value)`."""

    def __init__(self, seen: Callable[[Any, Any], Any]) -> None:
        self._seen = seen

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, task: Any, owner: type) -> Any:
        if task is None:
            return self
        own, context = vars(task)[self._name], TaskRunContext.get()
        is_prefects = context is not None and context.task is task and not is_driven(task)
        return self._seen(task, own) if is_prefects else own

    def __set__(self, task: Any, value: Any) -> None:
        vars(task)[self._name] = value


class TaskWorkerJob:
    """The job of a task run that an engine of Prefect's drives; it ends with that engine at the latest."""

    def __init__(self, task: Any, context: TaskRunContext) -> None:
        self.task, self.task_run, self._parameters = task, context.task_run, context.parameters
        self.has_ended = False
        self._job_run = JobRun(task, task.job_options)
        self._attempts = 0

    def run(self) -> Any:
        """Run one attempt and block until it has ended; return its value or raise its error."""
        self._attempts += 1
        with driving(self.task):
            try:
                if self._attempts == 1:
                    self._job_run.open(self.task_run, self._parameters)
                elif (slot := self._job_run.ask_for_retry()) is not None:
                    slot.result()
                value = self._job_run.value = self._job_run.attempt(self.task_run, get_run_logger())
            except Exception as error:
                self._end_unless_asked(Failed(data=error))
                raise
            self._end_unless_asked(value if isinstance(value, State) else Completed())
            return value

    async def arun(self) -> Any:
        """Do what `run` does in a thread, and await it; when cancelled, return once the attempt is dead."""
        return await result_of_job(self.run, self._job_run)

    def may_retry(self, state: State[Any], ask_own: Callable[[], bool | Awaitable[bool]]) -> bool | Awaitable[bool]:
        """Return whether another attempt follows the one that ended in `state`.

        The executor's rules are asked first, then the task's own condition, `ask_own`.
        """
        decision = self._job_run.decide(state)
        own = ask_own() if decision.retry else True
        if isinstance(own, Awaitable):
            return self._await_own_condition(decision, state, own)
        return self._conclude(decision, state, own)

    async def _await_own_condition(self, decision: RetryDecision, state: State[Any], own: Awaitable[bool]) -> bool:
        return self._conclude(decision, state, await own)

    def _conclude(self, decision: RetryDecision, state: State[Any], own: bool) -> bool:
        if decision.retry and own:
            self._job_run.start_retry(decision)
            return True
        reason = decision.reason if own else FORBIDDEN.reason
        get_run_logger().error("Job failed: %s (%s)", state.message, reason)
        self._end(state)
        return False

    def _end_unless_asked(self, state: State[Any]) -> None:
        """End the job in the `state` of its attempt, unless the engine calls the retry condition for that."""
        if not state.is_failed() or self._attempts > self.retries:
            self._end(state)

    @property
    def retries(self) -> int:
        """How many retries the job may have, which may come from the settings of the executor."""
        driver = self._job_run.driver
        return int(self.task.retries if driver is None else driver.job.policy.retry_attempts)

    def _end(self, state: State[Any]) -> None:
        self._job_run.settle(state)
        self.close()

    def close(self) -> None:
        """Release everything the job holds, whether or not it has ended."""
        if not self.has_ended:
            self.has_ended = True
            self._job_run.close()


_current_job: ContextVar[TaskWorkerJob | None] = ContextVar("current_job", default=None)
"""The job of the engine whose context the caller is in."""


def _job_of(task: Any) -> TaskWorkerJob:
    """Return the job of the engine around the caller, and make it for the engine's first attempt."""
    context, job = TaskRunContext.get(), _current_job.get()
    assert context is not None, "an engine runs its task in this context"
    if job is None or job.has_ended or job.task_run.id != context.task_run.id:
        job = TaskWorkerJob(task, context)
        _current_job.set(job)
        if task.isasync and (engine := asyncio.current_task()) is not None:
            engine.add_done_callback(lambda _: job.close())  # It may be cancelled while it waits for a retry.
    return job


def retries_of_job(own: int) -> int:
    """Return how many retries the job of the engine around the caller may have: the task's `own` before it is made."""
    job = _current_job.get()
    return own if job is None or job.has_ended else job.retries


class AttemptAsJob:
    """Replaces a job task's function in Prefect's engine: calling it runs one attempt of the task run's job."""

    def __init__(self, task: Any, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        if hasattr(function, "__code__"):
            self.__code__ = function.__code__  # Prefect computes cache keys from it.
        self._task = task

    def __call__(self, *_: Any, **__: Any) -> Any:
        job = _job_of(self._task)
        return job.arun() if self._task.isasync else job.run()


def retry_condition(own: RetryCondition | None) -> RetryCondition:
    """Return the condition that Prefect's engine asks before it retries a job task.

    It applies the executor's rules, then the task's `own` condition, which may refuse a retry. It is a coroutine
    function if that one is: older Prefects await no other's answer.
    """

    def condition(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool | Awaitable[bool]:
        job = _current_job.get()
        if job is None or job.has_ended:  # The engine failed, not an attempt: for example, it could not write a result.
            return own is None or own(task, task_run, state)
        return job.may_retry(state, lambda: own is None or own(task, task_run, state))

    async def awaited_condition(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
        answer = condition(task, task_run, state)
        return await answer if isinstance(answer, Awaitable) else answer

    return awaited_condition if inspect.iscoroutinefunction(own) else condition
