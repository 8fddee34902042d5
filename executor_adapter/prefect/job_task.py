"""@job_task: a Prefect task whose body is one Job.

    @job_task(pool="process", max_runtime=600, retry_attempts=3, tags=["nightly"])
    def collect(tool: str) -> pd.DataFrame: ...

    @flow
    def nightly() -> None:
        frames = collect.map(["flights", "weather"])

It is called, submitted and mapped as any Prefect task is, in flows and outside. The executor that runs it is the one
of the innermost `with JobExecutor(...)` around the call, else one per process. `delay`, `apply_async` and `serve` leave
it to a task worker: see `stock_engine`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from prefect import Task
from prefect.tasks import MaterializingTask
from prefect.utilities.callables import get_call_parameters
from prefect.utilities.visualization import get_task_viz_tracker, track_viz_task

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job.model import Job
from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.engine.run import ReturnType, run_async, run_sync
from executor_adapter.prefect.engine.task_worker import AttemptAsJob, RetryCondition, in_stock_engine, retry_condition
from executor_adapter.prefect.options.job_options import (
    check_job_options,
    job_of_call,
    merge_options,
    split_options,
    with_default_retries,
)
from executor_adapter.prefect.options.retries import shown_retries
from executor_adapter.prefect.runners.companion import JobTaskCall, flow_run_context_for_jobs

P = ParamSpec("P")
R = TypeVar("R")
Method = TypeVar("Method", bound=Callable[..., Any])


def _typed_as(method: Method) -> Callable[[Callable[..., Any]], Method]:
    """Give a method the overloaded signature of the one it stands for."""
    return lambda own: cast(Method, functools.wraps(method)(own))


def _under_companion(method: Method) -> Method:
    """Let a method of Task that submits find the runner for job tasks where it looks for the flow's."""

    def submit(self: Any, *args: Any, **kwargs: Any) -> Any:
        with flow_run_context_for_jobs() or contextlib.nullcontext():
            return method(self, *args, **kwargs)

    return _typed_as(method)(submit)


class JobTask(Task[P, R]):
    """A Prefect task whose calls are run by a JobExecutor.

    `options`: each field of a Job but function, args, kwargs and job_id, and each option of `prefect.task`. In
    `tool_name` and `dedupe_key`, `{parameter}` stands for an argument of the call.

    Raises:
        TypeError: an option is unknown.
        InvalidJobError: its value is none that could ever work, or the function is a generator.
    """

    def __init__(self, fn: Callable[P, R], **options: Any) -> None:
        given, task_options = split_options(options)
        job_options = with_default_retries(given)
        function = fn.__func__ if isinstance(fn, classmethod | staticmethod) else fn
        policy = check_job_options(function, job_options).policy
        shown: dict[str, Any] = {**shown_retries(policy), "timeout_seconds": job_options.get("max_runtime")}
        super().__init__(fn, **task_options, **shown)
        if self.isgenerator:
            raise InvalidJobError(f"job task {self.name}: a generator function cannot be a job: return a list")
        self.job_options: dict[str, Any] = job_options

    @property
    def fn(self) -> Callable[P, R]:
        """The function itself. An engine of Prefect's, which would call it, gets one that runs it as a job."""
        own: Callable[P, R] = vars(self)["fn"]
        return cast(Callable[P, R], AttemptAsJob(self, self.job_options, own)) if in_stock_engine(self) else own

    @fn.setter
    def fn(self, function: Callable[P, R]) -> None:
        vars(self)["fn"] = function

    @property
    def retry_condition_fn(self) -> RetryCondition | None:
        """What may forbid a retry. An engine of Prefect's gets one that asks the executor's rules too."""
        own: RetryCondition | None = vars(self)["retry_condition_fn"]
        return retry_condition(own) if in_stock_engine(self) else own

    @retry_condition_fn.setter
    def retry_condition_fn(self, condition: RetryCondition | None) -> None:
        vars(self)["retry_condition_fn"] = condition

    @property
    def timeout_seconds(self) -> float | None:
        """The `max_runtime` it was given. An engine of Prefect's is to keep none: the job keeps it."""
        own: float | None = vars(self)["timeout_seconds"]
        return None if in_stock_engine(self) else own

    @timeout_seconds.setter
    def timeout_seconds(self, seconds: float | None) -> None:
        vars(self)["timeout_seconds"] = seconds

    def make_job(self, job_id: str, parameters: Mapping[str, Any]) -> Job:
        """The job of one call; `parameters` are bound to the function's signature, and its futures resolved."""
        return job_of_call(self, self.job_options, job_id, parameters)

    def with_options(self, **options: Any) -> JobTask[P, R]:
        """A copy of this task with some options changed, of a Job or of a Prefect task."""
        job_options, task_options = split_options(options)
        merged = merge_options(self.job_options, job_options)
        policy = check_job_options(self.fn, merged).policy
        plain = super().with_options(**task_options, **shown_retries(policy))
        task = copy.copy(self)
        vars(task).update(vars(plain), job_options=merged, timeout_seconds=merged.get("max_runtime"))
        return task

    def _call(
        self, *args: Any, return_state: bool = False, wait_for: Iterable[Any] | None = None, **kwargs: Any
    ) -> Any:
        """Run one job and give its value, or its final State; of an async function, a coroutine that does."""
        parameters = get_call_parameters(self.fn, args, kwargs)
        if get_task_viz_tracker():
            isasync: Any = self.isasync
            return track_viz_task(isasync, self.name, parameters, self.viz_return_value)
        run = run_async if self.isasync else run_sync
        job_run = JobRun(self, self.job_options)
        return_type: ReturnType = "state" if return_state else "result"
        scope = JobTaskCall(job_run.cancel)
        return run(job_run, parameters, wait_for=wait_for, return_type=return_type, scope=scope)

    if not TYPE_CHECKING:  # there Task's overloads stand: they give a call the function's own types
        __call__ = _call

    submit = _under_companion(Task.submit)
    map = _under_companion(Task.map)


class MaterializingJobTask(JobTask[P, R], MaterializingTask[P, R]):  # type: ignore[misc]  # it takes more options
    """A job task that materializes `assets`, as `prefect.assets.materialize` makes a task that does."""


@overload
def job_task(function: Callable[P, R], /) -> JobTask[P, R]: ...


@overload
def job_task(**options: Any) -> Callable[[Callable[P, R]], JobTask[P, R]]: ...


def job_task(function: Callable[P, R] | None = None, /, **options: Any) -> Any:
    """Make a function a job task, with or without options: see JobTask. One with `assets` materializes them."""
    if function is None:
        return functools.partial(MaterializingJobTask if "assets" in options else JobTask, **options)
    return JobTask(function, **options)
