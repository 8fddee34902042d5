"""Plain tasks as jobs: the job options of a `@task` under a JobTaskRunner, and the decorator that adds to them.

    @job_options(pool="process", memory_limit="1GiB")
    @task(retries=2, timeout_seconds=600)
    def aggregate(frame: pd.DataFrame) -> pd.DataFrame: ...

The options of `job_options` win over the task's Prefect options, and those win over the runner's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Unpack

from prefect import Task

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import JobOptions
from executor_adapter.prefect.options.job_options import JOB_OPTIONS, check_job_options, unknown_option
from executor_adapter.prefect.options.retries import policy_of_task

AnyTask = TypeVar("AnyTask", bound=Task[..., Any])

RETRY_FIELDS = frozenset({"retry", "retry_attempts", "retry_delay"})
PER_TASK_FIELDS = RETRY_FIELDS | {"dedupe_key"}
"""Fields of a Job that a runner cannot set for all tasks: Prefect has an option for them, or they name one call."""

RUNNER_OPTIONS = JOB_OPTIONS - PER_TASK_FIELDS | {"max_workers", "initializer", "initargs"}
"""What a JobTaskRunner can be made with."""


def job_options(**fields: Unpack[JobOptions]) -> Callable[[AnyTask], AnyTask]:
    """Set fields of `Job` for the jobs of a plain task under a JobTaskRunner; elsewhere they have no effect.

    The task stays the same object, and the tasks that its `with_options` returns keep the fields. They win over the
    task's own `retries` and `timeout_seconds`, and over the runner's fields. For a variant, decorate
    `task.with_options()`.

    Raises:
        TypeError: a field is unknown, or the decorated object is not a plain task.
        InvalidJobError: a value can never work.
    """
    for name in fields:
        if name not in JOB_OPTIONS:
            raise TypeError(unknown_option("job_options", name, JOB_OPTIONS))

    def record(task: AnyTask) -> AnyTask:
        _check_is_plain_task(task)
        merged = {**recorded_options(task), **fields}
        check_job_options(task.fn, merged)
        # Prefect's own with_options would drop the fields. One in the task's __dict__ is found before it.
        vars(task).update(job_options=merged, with_options=functools.partial(_with_options, task))
        return task

    return record


def _check_is_plain_task(task: object) -> None:
    if is_job_task(task):
        raise TypeError(f"{task!r} is a job task: pass these options to @job_task(...) or to its with_options")
    if not isinstance(task, Task):
        raise TypeError(f"{task!r} is not a task: put @job_options above @task")


def _with_options(task: Task[..., Any], **options: Any) -> Task[..., Any]:
    return job_options(**recorded_options(task))(type(task).with_options(task, **options))


def is_job_task(task: object) -> bool:
    """Return whether `task` is a JobTask. It asks for a method, because importing the class here would be a circle."""
    return hasattr(task, "make_job")


def recorded_options(task: Task[..., Any]) -> dict[str, Any]:
    """Return the fields that `job_options` has set for the task, or the job options of a job task."""
    return dict(vars(task).get("job_options", ()))


def check_defaults(fields: Mapping[str, Any]) -> None:
    """Refuse fields that a runner cannot set for all its tasks.

    Raises:
        TypeError: a field is unknown, or belongs to each task.
        InvalidJobError: a value can never work.
    """
    for name in fields:
        if name in PER_TASK_FIELDS:
            raise TypeError(f"{name} is set for each task: use @task(retries=...) or @job_options({name}=...)")
        if name not in JOB_OPTIONS:
            raise TypeError(unknown_option("JobTaskRunner", name, RUNNER_OPTIONS))
    check_job_options(check_defaults, fields, owner="JobTaskRunner")


def options_of(task: Task[..., Any], defaults: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of the jobs of `task` under a runner with these `defaults`. A job task keeps its own.

    Raises:
        InvalidJobError: the task's function is a generator, which cannot be a job.
    """
    own = recorded_options(task)
    if is_job_task(task):
        return own
    if task.isgenerator:
        raise InvalidJobError(f"task {task.name}: a generator function cannot be a job: return a list, or call it")
    options = {"max_runtime": None, **defaults}
    if task.timeout_seconds is not None:
        options["max_runtime"] = task.timeout_seconds
    if own.keys() & RETRY_FIELDS:
        options["retry_attempts"] = task.retries  # A retry_delay alone is that of the task's own retries.
    else:
        options["retry"] = policy_of_task(task)
    return options | own
