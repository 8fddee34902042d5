"""Job tasks in Prefect's own engines: those of a task worker, which runs what `delay` and `apply_async` scheduled.

A task worker knows no engine but Prefect's. What that asks its task for is the function that makes an attempt, and
whether a failure may be retried. A JobTask answers with what is here, so that each attempt is one of a job, with its
limits, and `retry.decide` decides on the next. All else is the engine's: a job that waits for a slot is Running, and a
crash is Failed.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from queue import SimpleQueue
from typing import Any

import anyio
from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.logging.loggers import get_run_logger
from prefect.states import Completed, Failed

from executor_adapter.job.retry import RetryDecision
from executor_adapter.prefect.child.logs import log_message
from executor_adapter.prefect.engine.base import INTERRUPT_SECONDS
from executor_adapter.prefect.engine.job_run import JobRun, driving, is_driven, outcome
from executor_adapter.prefect.engine.waiting import over, result_of

RetryCondition = Callable[[Task[..., Any], TaskRun, State[Any]], bool | Awaitable[bool]]


def in_stock_engine(task: Task[..., Any]) -> bool:
    """Whether the caller is one of Prefect's own engines that runs `task`, or code that it calls."""
    context = TaskRunContext.get()
    return context is not None and context.task is task and not is_driven(task)


class StockJob:
    """The job of a task run that an engine of Prefect's drives. It ends with that engine, at the latest."""

    def __init__(self, task: Task[..., Any], options: Mapping[str, Any], context: TaskRunContext) -> None:
        self.task, self.task_run, self._parameters = task, context.task_run, context.parameters
        self.is_over = False
        self._job_run = JobRun(task, options)
        self._messages: SimpleQueue[Any] = SimpleQueue()
        self._attempts = 0

    def run(self) -> Any:
        """Run one attempt, and block until it is over: its value, or its error."""
        with driving(self.task):
            try:
                for step in self._steps_to_slot(lambda topic, content: self._messages.put((topic, content))):
                    step.result()
                future = self._job_run.attempt(self.task_run, self._parameters)
                future.add_done_callback(self._messages.put)
                for topic, content in iter(self._messages.get, future):
                    log_message(get_run_logger(), topic, content)
                return self._returned(outcome(future))
            except Exception as error:
                self._raised(error)
                raise

    async def arun(self) -> Any:
        """The same in an event loop, which is not blocked; a cancelled one returns when nothing of it is alive."""
        loop, log = asyncio.get_running_loop(), functools.partial(log_message, get_run_logger())
        with driving(self.task):
            context = copy_context()

            def hear(topic: str, content: Any) -> None:
                loop.call_soon_threadsafe(log, topic, content, context=context)

            try:
                for step in self._steps_to_slot(hear):
                    await result_of(step)
                future = self._job_run.attempt(self.task_run, self._parameters)
                await over(future)
                return self._returned(outcome(future))
            except Exception as error:
                self._raised(error)
                raise
            except BaseException as error:
                await self._interrupt(error)
                raise

    def _steps_to_slot(self, hear: Callable[[str, Any], None]) -> Iterator[Future[None]]:
        """What has to be waited for, one after the other, before an attempt may begin."""
        self._attempts += 1
        if self._attempts == 1:
            yield self._job_run.open(self.task_run, self._parameters, hear)
            return
        due, self._job_run.due = self._job_run.due, None
        assert due is not None, "a further attempt was decided on"
        assert self._job_run.driver is not None, "a retry is one of a job that was started"
        yield due
        yield self._job_run.driver.acquire()

    def may_retry(self, state: State[Any], ask_own: Callable[[], bool | Awaitable[bool]]) -> bool | Awaitable[bool]:
        """Whether another attempt follows one that ended in `state`: by the executor's rules, then the task's own."""
        decision = self._job_run.decide(state)
        own = ask_own() if decision.retry else True
        if isinstance(own, Awaitable):
            return self._follow_later(decision, state, own)
        return self._follow(decision, state, own)

    async def _follow_later(self, decision: RetryDecision, state: State[Any], own: Awaitable[bool]) -> bool:
        return self._follow(decision, state, await own)

    def _follow(self, decision: RetryDecision, state: State[Any], own: bool) -> bool:
        if decision.retry and own:
            self._job_run.await_retry(decision)
            return True
        reason = decision.reason if own else "its retry_condition_fn says no"
        get_run_logger().error("Job failed: %s (%s)", state.message, reason)
        self._end(state)
        return False

    def _returned(self, value: Any) -> Any:
        self._job_run.value = value
        state = value if isinstance(value, State) else Completed()
        if not (state.is_failed() and self._will_be_asked()):
            self._end(state)
        return value

    def _raised(self, error: Exception) -> None:
        if not self._will_be_asked():
            self._end(Failed(data=error))

    def _will_be_asked(self) -> bool:
        """Whether the engine asks if it may retry, should this attempt have failed."""
        return self._attempts <= self.task.retries

    async def _interrupt(self, error: BaseException) -> None:
        running = self._job_run.interrupt(f"ended by {type(error).__name__}")
        if running is not None:
            with anyio.move_on_after(INTERRUPT_SECONDS, shield=True):
                await over(running)
        self.close()

    def _end(self, state: State[Any]) -> None:
        self._job_run.settle(state)
        self.close()

    def close(self) -> None:
        """Leave nothing of the job behind, whether or not it has ended."""
        if not self.is_over:
            self.is_over = True
            self._job_run.close()


_current: ContextVar[StockJob | None] = ContextVar("current", default=None)
"""That of the engine whose context the caller is in."""


def _job_of(task: Task[..., Any], options: Mapping[str, Any]) -> StockJob:
    """That of the engine around the caller, made for its first attempt."""
    context, job = TaskRunContext.get(), _current.get()
    assert context is not None, "an engine runs its task in this context"
    if job is None or job.is_over or job.task_run.id != context.task_run.id:
        job = StockJob(task, options, context)
        _current.set(job)
        if task.isasync and (engine := asyncio.current_task()) is not None:
            engine.add_done_callback(lambda _: job.close())  # it may be cancelled while it waits for a retry
    return job


class AttemptAsJob:
    """Stands for a job task's function in an engine of Prefect's: calling it runs one attempt of the task run's job."""

    def __init__(self, task: Task[..., Any], options: Mapping[str, Any], function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        if hasattr(function, "__code__"):
            self.__code__ = function.__code__  # cache keys are made of it
        self._task, self._options = task, options

    def __call__(self, *_: Any, **__: Any) -> Any:
        job = _job_of(self._task, self._options)
        return job.arun() if self._task.isasync else job.run()


def retry_condition(own: RetryCondition | None) -> RetryCondition:
    """What an engine of Prefect's is to ask before it retries a job task, whose `own` condition may say no."""

    def condition(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool | Awaitable[bool]:
        job = _current.get()
        if job is None or job.is_over:  # what failed was no attempt: its result could not be written, or the like
            return own is None or own(task, task_run, state)
        return job.may_retry(state, lambda: own is None or own(task, task_run, state))

    return condition
