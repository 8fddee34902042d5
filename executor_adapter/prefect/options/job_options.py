"""The options of a job task: the fields of a Job that do not belong to one call, and the options of a Prefect task.

Three options have a name on both sides. Prefect's name is translated, and giving both names is refused:

    retries               retry_attempts
    retry_delay_seconds   retry: with retry_jitter_factor, see `options.retries`
    timeout_seconds       max_runtime
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

from prefect import Task
from prefect.assets import Asset
from prefect.settings import get_current_settings
from prefect.tasks import TaskOptions
from prefect.utilities.callables import parameters_to_args_kwargs

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import Job, JobOptions, nearest
from executor_adapter.pools import check_limits
from executor_adapter.prefect.options.retries import Delays, policy_from_prefect

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
    for name in options:
        if name not in JOB_OPTIONS and name not in TASK_OPTIONS:
            raise TypeError(unknown_option("a job task", name, JOB_OPTIONS | TASK_OPTIONS))
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


def unknown_option(owner: str, name: str, known: Collection[str]) -> str:
    """Return the message that refuses option `name`, with the known option that it probably means if there is one."""
    neither = "it is neither a field of Job nor an option of a Prefect task"
    near = nearest(name, sorted(known))
    return f"{owner} has no option {name!r}: {neither if near is None else f'did you mean {near}?'}"


def _translated(options: Mapping[str, Any], retries: int | None) -> dict[str, Any]:
    job: dict[str, Any] = {}
    if options.get("timeout_seconds") is not None:
        job["max_runtime"] = options["timeout_seconds"]
    if options.get("retry_delay_seconds") is not None:
        attempts = options.get("retries", options.get("retry_attempts", retries))
        delays, jitter = options["retry_delay_seconds"], options.get("retry_jitter_factor")
        job["retry"] = policy_from_prefect(attempts, delays, jitter)
    elif options.get("retry_jitter_factor") is not None:
        raise InvalidJobError(
            "retry_jitter_factor needs retry_delay_seconds: give both, or retry=RetryPolicy(jitter=...)"
        )
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
    fields = {**AS_A_TASK, **options}
    for name in FORMATTED:
        if isinstance(fields.get(name), str):
            fields[name] = fields[name].format(**parameters)
    return Job(job_id=job_id, function=task.fn, args=args, kwargs=kwargs, **fields)


def check_job_options(function: Callable[..., Any], options: Mapping[str, Any], owner: str | None = None) -> Job:
    """Check the options by making a job of `function` with them, and return that job, which is never run.

    `owner`: the name that an error message starts with; by default the function's.

    Raises:
        InvalidJobError: a value can never work.
    """
    name = owner or f"task {getattr(function, '__qualname__', repr(function))}"
    try:
        job = Job(function=function, **{**AS_A_TASK, **options})
        if options.get("pool", "auto") != "auto" and options.keys() & {"memory_limit", "resources", "soft_timeout"}:
            check_limits(job)  # The settings can change neither the pool nor these limits any more.
    except InvalidJobError as error:
        raise InvalidJobError(f"{name}: {error}") from None
    return job
