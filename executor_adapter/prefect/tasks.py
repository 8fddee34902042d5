"""@job_task: makes a function a Prefect task whose calls run as jobs.

    @job_task(pool="process", max_runtime=600, retry_attempts=3, tags=["nightly"])
    def collect(tool: str) -> pd.DataFrame: ...

    @flow
    def nightly() -> None:
        frames = collect.map(["flights", "weather"])

It is called, submitted and mapped as any Prefect task, in flows and outside. The executor that runs it is that of the
innermost `with JobExecutor(...)` around the call, else one for the process. With `delay`, `apply_async` and `serve` a
task worker runs it: see `engine.task_worker`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, Unpack, get_args, overload

from prefect import State, Task
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture, PrefectFutureList
from prefect.tasks import MaterializingTask
from prefect.utilities.callables import get_call_parameters
from prefect.utilities.visualization import get_task_viz_tracker, track_viz_task

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import Job, PoolName
from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.engine.run import ReturnType, run_sync
from executor_adapter.prefect.engine.task_worker import AttemptAsJob, SeenByEngine, retries_of_job, retry_condition
from executor_adapter.prefect.options.job_options import (
    JobTaskOptions,
    check_job_options,
    job_of_call,
    merge_options,
    split_options,
    with_default_retries,
)
from executor_adapter.prefect.options.retries import prefect_retry_options
from executor_adapter.prefect.runners.companion import await_job_task, call_job_task, flow_run_context_for_jobs

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def _with_companion(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a submitting method of Task find the runner for job tasks in place of the flow's task runner."""

    @functools.wraps(method)
    def submit(self: Any, *args: Any, **kwargs: Any) -> Any:
        if FlowRunContext.get() is None and not (kwargs.get("deferred") or get_task_viz_tracker()):
            name, instead = self.name, "delay(...)" if method.__name__ == "submit" else "map(..., deferred=True)"
            raise RuntimeError(
                f"{name}.{method.__name__} needs a flow run around it: call it in a function with @flow, "
                f"call {name}(...) to run it here and wait, or {name}.{instead} to leave it to a task worker"
            )
        with flow_run_context_for_jobs() or contextlib.nullcontext():
            return method(self, *args, **kwargs)

    return submit


def _already_a_task(task: Task[..., Any]) -> str:
    """Return the message that refuses to make a job task of `task`."""
    name = task.fn.__name__
    if isinstance(task, JobTask):
        return f"job_task: {name} is a job task already: use {name}.with_options(...)"
    return f"job_task: {name} is a task already: write @job_task(...) in place of @task, or job_task({name}.fn, ...)"


class JobTask(Task[P, R]):
    """A Prefect task whose calls are run by a JobExecutor. Without options it has no retry and no limit, like a task.

    `options`: every field of a Job except function, args, kwargs and job_id, and every option of `prefect.task`. In
    `tool_name` and `dedupe_key`, `{parameter}` is replaced by an argument of the call.

    Raises:
        TypeError: an option is unknown, or `fn` is a task already.
        InvalidJobError: a value can never work, or the function is a generator.
    """

    def __init__(self, fn: Callable[P, R], **options: Unpack[JobTaskOptions]) -> None:
        if isinstance(fn, Task):
            raise TypeError(_already_a_task(fn))
        given, task_options = split_options(options)
        job_options = with_default_retries(given, options)
        function = fn.__func__ if isinstance(fn, classmethod | staticmethod) else fn
        policy = check_job_options(function, job_options).policy
        shown: dict[str, Any] = {**prefect_retry_options(policy), "timeout_seconds": job_options.get("max_runtime")}
        task_options.setdefault("log_prints", None)  # As in `@task`: then the setting of the flow counts.
        super().__init__(fn, **task_options, **shown)
        if self.isgenerator:
            raise InvalidJobError(f"job task {self.name}: a generator function cannot be a job: return a list")
        self.job_options: dict[str, Any] = job_options

    if not TYPE_CHECKING:  # Type checkers see Task's own attributes.
        fn = SeenByEngine(AttemptAsJob)
        retry_condition_fn = SeenByEngine(lambda _, own: retry_condition(own))
        retries = SeenByEngine(lambda _, own: retries_of_job(own))
        timeout_seconds = SeenByEngine(lambda *_: None)  # The job's limit must not be applied a second time.

    def make_job(self, job_id: str, parameters: Mapping[str, Any]) -> Job:
        """Return the job of one call; `parameters` are bound to the function's signature and hold no futures."""
        return job_of_call(self, self.job_options, job_id, parameters)

    def with_options(self, **options: Unpack[JobTaskOptions]) -> JobTask[P, R]:  # type: ignore[override]
        """Return a copy of this task with some options changed, of a Job or of a Prefect task."""
        job_options, task_options = split_options(options, self.retries or self.job_options.get("retry_attempts"))
        merged = with_default_retries(merge_options(self.job_options, job_options), options)
        plain = super().with_options(**task_options, **prefect_retry_options(check_job_options(self.fn, merged).policy))
        task = copy.copy(self)
        vars(task).update(vars(plain), job_options=merged, timeout_seconds=merged.get("max_runtime"))
        return task

    def _call(
        self, *args: Any, return_state: bool = False, wait_for: Iterable[Any] | None = None, **kwargs: Any
    ) -> Any:
        """Run one job and return its value or final State; for an async function, return a coroutine that does so."""
        parameters = get_call_parameters(self.fn, args, kwargs)
        if get_task_viz_tracker():
            isasync: Any = self.isasync
            return track_viz_task(isasync, self.name, parameters, self.viz_return_value)
        job_run = JobRun(self, self.job_options)
        return_type: ReturnType = "state" if return_state else "result"
        run = functools.partial(run_sync, job_run, parameters, wait_for=wait_for, return_type=return_type)
        return (await_job_task if self.isasync else call_job_task)(job_run, run)

    if not TYPE_CHECKING:  # Type checkers see Task's overloads, which give a call the function's own types.
        __call__ = _call
        submit = _with_companion(Task.submit)
        map = _with_companion(Task.map)
    else:  # Unlike Task's, these take futures for arguments, and give a coroutine function's future its own type.

        @overload  # type: ignore[override]
        def submit(  # type: ignore[overload-overlap]
            self: OfCoroutine[P, T], *args: P.args, **kwargs: P.kwargs
        ) -> PrefectFuture[T]: ...
        @overload
        def submit(self, *args: P.args, **kwargs: P.kwargs) -> PrefectFuture[R]: ...
        @overload
        def submit(self: OfCoroutine[P, T], *args: Any, return_state: Literal[True], **kwargs: Any) -> State[T]: ...
        @overload
        def submit(self, *args: Any, return_state: Literal[True], **kwargs: Any) -> State[R]: ...
        @overload
        def submit(self: OfCoroutine[P, T], *args: Any, **kwargs: Any) -> PrefectFuture[T]: ...
        @overload
        def submit(self, *args: Any, **kwargs: Any) -> PrefectFuture[R]: ...
        def submit(self, *args: Any, **kwargs: Any) -> Any: ...

        @overload  # type: ignore[override]
        def map(self: OfCoroutine[P, T], *args: Any, return_state: Literal[True], **kwargs: Any) -> list[State[T]]: ...
        @overload
        def map(self, *args: Any, return_state: Literal[True], **kwargs: Any) -> list[State[R]]: ...
        @overload
        def map(self: OfCoroutine[P, T], *args: Any, **kwargs: Any) -> PrefectFutureList[T]: ...
        @overload
        def map(self, *args: Any, **kwargs: Any) -> PrefectFutureList[R]: ...
        def map(self, *args: Any, **kwargs: Any) -> Any: ...


OfCoroutine = JobTask[P, Coroutine[Any, Any, T]]
"""The job task of a coroutine function that gives T."""


class MaterializingJobTask(JobTask[P, R], MaterializingTask[P, R]):  # type: ignore[misc]  # It takes more options.
    """A job task that materializes `assets`, like a task made by `prefect.assets.materialize`."""


class JobTaskDecorator(Protocol):
    """Makes a function a job task. A coroutine function returns a Coroutine, whatever a type checker calls it."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> JobTask[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> JobTask[P, R]: ...


@overload
def job_task(function: Callable[P, Coroutine[Any, Any, T]], /) -> JobTask[P, Coroutine[Any, Any, T]]: ...
@overload
def job_task(function: Callable[P, R], /) -> JobTask[P, R]: ...
@overload
def job_task(**options: Unpack[JobTaskOptions]) -> JobTaskDecorator: ...
@overload  # For no call: mypy compares a misspelt pool with this one, and else prints each option of the one above.
def job_task(*, pool: Sequence[PoolName], **options: Any) -> JobTaskDecorator: ...
def job_task(function: Any = None, /, **options: Any) -> Any:
    """Make a function a job task: write `@job_task`, or `@job_task(option=...)`, or `job_task(function)`.

    Options of a job, which `help(Job)` explains:
        where: pool, fresh_worker, keep, memory_limit, resources
        limits in seconds: max_runtime, soft_timeout, queue_timeout, stall_timeout, deadline
        retries: retry_attempts, retry_delay (seconds), retry (a RetryPolicy)
        names: job_type, tool_name, dedupe_key (the last two may hold `{parameter}`), metadata, priority

    All options of `prefect.task` too, such as name, tags, cache_policy, persist_result, retries, retry_delay_seconds
    and timeout_seconds (the same as max_runtime); with `assets` (and `materialized_by`), its runs materialize them.

    Raises:
        TypeError: an option is unknown, or the function is none, or a task already.
        InvalidJobError: a value can never work, or the function is a generator.
    """
    if not (function is None or callable(function) or isinstance(function, classmethod | staticmethod)):
        option = f"pool={function!r}" if function in get_args(PoolName) else "..."
        raise TypeError(f"job_task: {function!r} is not a function: write @job_task({option}), with options by name")
    kind = MaterializingJobTask if "assets" in options else JobTask
    return functools.partial(kind, **options) if function is None else kind(function, **options)
