"""The options of a job task: the fields of a Job that do not belong to one call, and the options of a Prefect task.

Three options have a name on both sides. Prefect's name is translated, and giving both names is refused:

    retries               retry_attempts
    retry_delay_seconds   retry: with retry_jitter_factor, see `options.retries`
    timeout_seconds       max_runtime

Those of a plain task under a JobTaskRunner, and the decorator that adds to them:

    @job_options(pool="process", memory_limit="1GiB")
    @task(retries=2, timeout_seconds=600)
    def aggregate(frame: pd.DataFrame) -> pd.DataFrame: ...

The options of `job_options` win over the task's Prefect options, and those win over the runner's.
"""

from __future__ import annotations

import functools
import inspect
import re
import string
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar, Unpack, cast

from prefect import Task
from prefect.assets import Asset
from prefect.settings import get_current_settings
from prefect.tasks import TaskOptions
from prefect.utilities.callables import parameters_to_args_kwargs

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import Job, JobOptions, nearest
from executor_adapter.pools.selection import check_limits
from executor_adapter.prefect.options.retries import Delays, policy_from_prefect, policy_of_task

JOB_OPTIONS = frozenset(Job.model_fields) - {"function", "args", "kwargs", "job_id"}
TASK_OPTIONS = frozenset(inspect.signature(Task.__init__).parameters) - {"self", "fn"} | {"assets", "materialized_by"}
TRANSLATED = {
    "retries": ("retry_attempts", "retry"),
    "retry_delay_seconds": ("retry_delay", "retry"),
    "retry_jitter_factor": ("retry",),
    "timeout_seconds": ("max_runtime",),
}
"""Prefect's options that are translated instead of passed to Prefect, and the fields of a Job that mean the same."""


class JobTaskOptions(JobOptions, TaskOptions, total=False):
    """The options of a job task as typed keyword arguments, those of a Job and those of `prefect.task`.

    A function of yours that passes options on declares `**options: Unpack[JobTaskOptions]`.
    """

    assets: Sequence[str | Asset]
    materialized_by: str | None


def split_options(options: Mapping[str, Any], retries: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split `options` into fields of a Job and options of Prefect's Task; Prefect's names are translated.

    `retries`: the number of retries that `retry_delay_seconds` is for where the options have none; by default that of
    Prefect's settings. Where nobody has set that either, the executor's settings say how many when the task is called.

    Raises:
        TypeError: an option is neither.
        InvalidJobError: an option is given under both names, or under Prefect's name with a value that cannot work.
    """
    _refuse_unknown("a job task", options, JOB_OPTIONS | TASK_OPTIONS)
    for theirs, ours in TRANSLATED.items():
        for name in ours:
            if theirs in options and name in options:
                raise InvalidJobError(f"{theirs} and {name} mean the same: give one of them")
    job = {name: value for name, value in options.items() if name in JOB_OPTIONS}
    task = {name: value for name, value in options.items() if name in TASK_OPTIONS and name not in TRANSLATED}
    settings = get_current_settings().tasks
    if retries is None and "default_retries" in settings.model_fields_set:
        retries = settings.default_retries
    return job | _translated(options, retries), task


def _refuse_unknown(owner: str, names: Iterable[str], known: Collection[str]) -> None:
    """Refuse an option that is not known, with the one that it probably means if there is one.

    Raises:
        TypeError: an option is not known.
    """
    neither = "it is neither a field of Job nor an option of a Prefect task"
    for name in names:
        if name not in known:
            near = nearest(name, sorted(known))
            raise TypeError(f"{owner} has no option {name!r}: {neither if near is None else f'did you mean {near}?'}")


def _translated(options: Mapping[str, Any], retries: int | None) -> dict[str, Any]:
    job: dict[str, Any] = {}
    if options.get("timeout_seconds") is not None:
        job["max_runtime"] = options["timeout_seconds"]
    delays, jitter = options.get("retry_delay_seconds"), options.get("retry_jitter_factor")
    if delays is not None or jitter is not None:
        attempts = options.get("retries", options.get("retry_attempts", retries))
        job["retry"] = policy_from_prefect(attempts, delays, jitter)
    elif options.get("retries") is not None:
        job["retry_attempts"] = options["retries"]
    return job


def with_default_retries(options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return job options with Prefect's default retry settings filled in where the task has no retry options.

    The settings are PREFECT_TASK_DEFAULT_RETRIES and PREFECT_TASK_DEFAULT_RETRY_DELAY_SECONDS; a setting that no one
    has set changes nothing. Retries that are `given` by Prefect's name, or by its setting, without a delay have none.
    """
    settings, filled = get_current_settings().tasks, dict(options)
    if "retry" in options:
        return filled
    are_prefects = given.get("retries") is not None
    if "retry_attempts" not in options and "default_retries" in settings.model_fields_set:
        filled["retry_attempts"], are_prefects = settings.default_retries, True
    if "retry_delay" in options:
        return filled
    if "default_retry_delay_seconds" in settings.model_fields_set and "retry_attempts" in filled:
        delays = cast(Delays, settings.default_retry_delay_seconds)
        filled["retry"] = policy_from_prefect(filled["retry_attempts"], delays, None)
    elif are_prefects:
        filled["retry_delay"] = 0.0
    return filled


def merge_options(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return job options with `changes` applied; the latest retry options win, under whichever name."""
    merged = {**before, **changes}
    policy = before.get("retry")
    if "retry" in changes or policy is None:
        return merged
    changed = {name: changes[name] for name in ("retry_attempts", "retry_delay") if name in changes}
    if "retry_delay" in changed:
        changed["delays"] = ()
    return merged | {"retry": policy.model_copy(update=changed)}


AS_A_TASK: dict[str, Any] = {"max_runtime": None, "retry_attempts": 0}
"""The fields of a job whose options say nothing of them, as a task of Prefect's has them."""

FORMATTED = ("tool_name", "dedupe_key")
"""Fields of a Job in which `{parameter}` is replaced by a call's argument, as in Prefect's `task_run_name`."""


def job_of_call(task: Task[..., Any], options: Mapping[str, Any], job_id: str, parameters: Mapping[str, Any]) -> Job:
    """Return the job of one call; `parameters` are bound to the function's signature and hold no futures."""
    args, kwargs = parameters_to_args_kwargs(task.fn, dict(parameters)) if parameters else ((), {})
    formatted = {name: options[name].format(**parameters) for name in FORMATTED if options.get(name)}
    return Job(job_id=job_id, function=task.fn, args=args, kwargs=kwargs, **{**AS_A_TASK, **options, **formatted})


def check_job_options(function: Callable[..., Any], options: Mapping[str, Any], owner: str | None = None) -> Job:
    """Check the options by making a job of `function` with them, and return that job, which is never run.

    `owner`: the name that an error message starts with; by default the function's.

    Raises:
        InvalidJobError: a value can never work, or names a parameter that the function does not have.
    """
    name = owner or f"task {getattr(function, '__qualname__', repr(function))}"
    try:
        job = Job(function=function, **{**AS_A_TASK, **options})
        if options.get("pool", "auto") != "auto" and options.keys() & {"memory_limit", "resources", "soft_timeout"}:
            check_limits(job)  # The settings can change neither the pool nor these limits any more.
        for text in (job.tool_name, job.dedupe_key):
            _check_braces(text or "", None if owner else inspect.signature(function).parameters)
    except ValueError as error:
        raise InvalidJobError(f"{name}: {error}") from None
    return job


def _check_braces(text: str, parameters: Collection[str] | None) -> None:
    """Check that each name in braces is one of `parameters`; None where they are not known yet.

    Raises:
        ValueError: one is not, or a brace is alone.
    """
    for _, field, _, _ in string.Formatter().parse(text):
        if field is not None and parameters is not None and re.split(r"[.[]", field)[0] not in parameters:
            raise ValueError(f"{text!r}: {{{field}}} is not a parameter of the function: write {{{{ for a brace")


# --- plain tasks ---

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
    _refuse_unknown("job_options", fields, JOB_OPTIONS)

    def record(task: AnyTask) -> AnyTask:
        if is_job_task(task):
            raise TypeError(f"{task!r} is a job task: pass these options to @job_task(...) or to its with_options")
        if not isinstance(task, Task):
            raise TypeError(f"{task!r} is not a task: put @job_options above @task")
        merged = {**recorded_options(task), **fields}
        check_job_options(task.fn, merged)
        # Prefect's own with_options would drop the fields. One in the task's __dict__ is found before it.
        vars(task).update(job_options=merged, with_options=functools.partial(_with_options, task))
        return task

    return record


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
    _refuse_unknown("JobTaskRunner", fields, RUNNER_OPTIONS)
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
