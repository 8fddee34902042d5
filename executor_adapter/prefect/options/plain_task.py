"""Plain tasks as jobs: what a `@task` under a JobTaskRunner asks of its job, and where it may ask for more.

    @job_options(pool="process", memory_limit="1GiB")
    @task(retries=2, timeout_seconds=600)
    def aggregate(frame: pd.DataFrame) -> pd.DataFrame: ...

What the runner says counts least, then what the task says in Prefect's words, then its `job_options`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from prefect import Task

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.prefect.options.job_options import JOB_OPTIONS, check_job_options, unknown_option
from executor_adapter.prefect.options.retries import policy_of

AnyTask = TypeVar("AnyTask", bound=Task[..., Any])

OWN_RETRIES = frozenset({"retry", "retry_attempts", "retry_delay"})
SAID_BY_EACH_TASK = OWN_RETRIES | {"dedupe_key"}
"""Fields of a Job that a runner cannot say for all its tasks: Prefect has a word for them, or they name one call."""


def job_options(**fields: Any) -> Callable[[AnyTask], AnyTask]:
    """Let the jobs of a plain task have these fields of `Job` under a JobTaskRunner; elsewhere they say nothing.

    The task stays the same object, and what `with_options` makes of it keeps them. They win over the task's own
    `retries` and `timeout_seconds`, and over what the runner says. For a variant, decorate `task.with_options()`.

    Raises:
        TypeError: a field is unknown, or what is decorated is no plain task.
        InvalidJobError: a value is none that could ever work.
    """
    for name in fields:
        if name not in JOB_OPTIONS:
            raise TypeError(unknown_option("job_options has no option", name, JOB_OPTIONS))

    def record(task: AnyTask) -> AnyTask:
        _refuse_others(task)
        merged = {**recorded_options(task), **fields}
        check_job_options(task.fn, merged)
        # Prefect's with_options makes a task of the options that it knows; it is looked up on the task first.
        vars(task).update(job_options=merged, with_options=functools.partial(_with_options, task))
        return task

    return record


def _refuse_others(task: object) -> None:
    if is_job_task(task):
        raise TypeError(f"{task!r} is a job task: give it these options itself, by @job_task(...) or with_options")
    if not isinstance(task, Task):
        raise TypeError(f"{task!r} is no task: put @job_options above @task")


def _with_options(task: Task[..., Any], **options: Any) -> Task[..., Any]:
    return job_options(**recorded_options(task))(type(task).with_options(task, **options))


def is_job_task(task: object) -> bool:
    return hasattr(task, "make_job")


def recorded_options(task: Task[..., Any]) -> dict[str, Any]:
    """What `job_options` said of the task, or a job task of itself."""
    return dict(vars(task).get("job_options", ()))


def check_defaults(fields: Mapping[str, Any]) -> None:
    """Refuse what no runner can say for all its tasks.

    Raises:
        TypeError: a field is unknown, or said by each task.
        InvalidJobError: a value is none that could ever work.
    """
    for name in fields:
        if name in SAID_BY_EACH_TASK:
            raise TypeError(f"{name} is each task's own: say it by @task(retries=...) or @job_options({name}=...)")
        if name not in JOB_OPTIONS:
            raise TypeError(unknown_option("JobTaskRunner has no option", name, JOB_OPTIONS - SAID_BY_EACH_TASK))
    check_job_options(check_defaults, fields, said_by="JobTaskRunner")


def options_of(task: Task[..., Any], defaults: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the jobs of `task` under a runner that says `defaults`. A job task has its own.

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
    if not own.keys() & OWN_RETRIES:
        options["retry"] = policy_of(task)
    return options | own
