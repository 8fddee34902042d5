"""The little of Prefect that a function sees in a worker process: no client, no network, no engine of the parent's.

`get_run_logger()`, `print` with `log_prints`, `prefect.runtime` and the task run's tags work there. The parent packs
the task run into about 1 KB of JSON (`task_run_payload`), the worker enters it around the function
(`task_run_scope`). Log records travel as any other of a job's do, and are logged by the parent against the task run.
Tasks and flows that the function calls run in the worker, by engines with clients of their own; it has no runner to
submit any. Events that the function emits are sent by Prefect's own thread in the worker, related to the task run; a
worker sends what is left of them before it goes.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, Self

from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.context import FlowRunContext, TagsContext, TaskRunContext, refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.futures import PrefectFuture
from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler
from prefect.logging.loggers import patch_print
from prefect.results import ResultStore
from prefect.settings import Settings, get_current_settings
from prefect.task_runners import TaskRunner
from prefect.utilities.engine import should_log_prints

from executor_adapter.prefect.child.logs import job_logger

if TYPE_CHECKING:
    from prefect import Task

TASK_RUN_SCOPE = f"{__name__}:task_run_scope"
TASK_RUN_SCOPE_HERE = f"{__name__}:task_run_scope_here"

_TASK_RUN_FIELDS = {
    "id", "name", "flow_run_id", "task_key", "dynamic_key", "task_version", "tags", "run_count", "flow_run_run_count",
    "start_time",
}  # fmt: skip
_FLOW_RUN_FIELDS = {
    "id", "name", "flow_id", "flow_version", "deployment_id", "tags", "run_count", "parent_task_run_id", "start_time",
    "expected_start_time", "work_queue_name",
}  # fmt: skip

FLUSH_SECONDS = 0.8
"""What a worker that goes gives its events: it is killed a second after it was let go."""

MAX_SHOWN_VALUE = 200
"""Characters of JSON: longer parameters are left out of `prefect.runtime`, since the function has them anyway."""


# --- in the parent ---


def task_run_payload(task: Task[..., Any], task_run: TaskRun, parameters: Mapping[str, Any]) -> str:
    """What the worker needs to know of `task_run` and of the flow run around it, as JSON."""
    flow_run_context = FlowRunContext.get()
    about = {
        "task": {"name": task.name, "version": task.version, "description": task.description},
        "task_run": task_run.model_dump(mode="json", include=_TASK_RUN_FIELDS),
        "parameters": shown_parameters(parameters),
        "tags": sorted(TagsContext.get().current_tags),
        "log_prints": should_log_prints(task),
        "flow": flow_run_payload(flow_run_context) if flow_run_context is not None else None,
    }
    return json.dumps(about)


def flow_run_payload(context: FlowRunContext) -> str | None:
    """What the worker needs to know of the flow run, as JSON; the same for all of its task runs."""
    if context.flow_run is None:
        return None
    about = {
        "flow": {"name": context.flow.name, "version": context.flow.version} if context.flow else {"name": "<unknown>"},
        "flow_run": json.loads(context.flow_run.model_dump_json(include=_FLOW_RUN_FIELDS)),
        "parameters": shown_parameters(context.parameters or {}),
        "settings": _settings_variables(get_current_settings()),
    }
    return json.dumps(about)


def _settings_variables(settings: Settings) -> dict[str, str]:
    """Prefect's settings around the caller, but for the defaults, as variables of the environment."""
    if not _last_settings or _last_settings[0] is not settings:
        _last_settings[:] = settings, settings.to_environment_variables(exclude_unset=True)
    variables: dict[str, str] = _last_settings[1]
    return variables


_last_settings: list[Any] = []
"""Those asked for last, which are hardly ever others than those asked for next, and the answer."""


def shown_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those that `prefect.runtime` is to show."""
    return {
        name: value
        for name, value in parameters.items()
        if isinstance(value, str | int | float | bool | None) and len(str(value)) <= MAX_SHOWN_VALUE
    }


# --- in the worker ---


class NoTaskRunner(TaskRunner[PrefectFuture[Any]]):
    """Stands in a worker process for the flow's task runner, which is in the parent: it refuses to submit."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def duplicate(self) -> Self:
        """It runs nothing, so one is enough."""
        return self

    def submit(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            "a job in a worker process cannot submit tasks: submit them in the flow, or use pool='thread'"
        )


@contextlib.contextmanager
def task_run_scope(payload: str) -> Iterator[None]:
    """Let the function see the task run and the flow run that `payload` tells of."""
    prepare_process()
    about = json.loads(payload)
    with contextlib.ExitStack() as stack:
        _use_settings(about["flow"])
        if about["flow"] is not None:
            stack.enter_context(_flow_run_context(about["flow"]))
        _enter_task_run(stack, about, log_prints=about["log_prints"])
        if about["log_prints"]:
            stack.enter_context(patch_print())
        try:
            yield
        except SystemExit:  # the worker has been told to end, and runs nothing more at its exit
            _flush_events()
            raise


@contextlib.contextmanager
def task_run_scope_here(payload: str) -> Iterator[None]:
    """The same in the process of the flow run, whose context the caller is in: `print` goes to the task run's log."""
    with contextlib.ExitStack() as stack:
        _enter_task_run(stack, json.loads(payload), log_prints=True)
        yield


def _enter_task_run(stack: contextlib.ExitStack, about: dict[str, Any], *, log_prints: bool) -> None:
    task_run = TaskRun.model_validate(about["task_run"])
    # Built without validation: a valid one would need a client and a result store.
    fields: dict[str, Any] = {
        "task": SimpleNamespace(**about["task"], tags=set(task_run.tags)),
        "task_run": task_run,
        "parameters": about["parameters"],
        "log_prints": log_prints,
        "result_store": _result_store(),
        "persist_result": False,
    }
    around = about.get("tags", task_run.tags)  # without the task's own, where the parent tells them apart
    stack.enter_context(TagsContext.model_construct(current_tags=set(around)))
    stack.enter_context(TaskRunContext.model_construct(**fields))


@functools.lru_cache(maxsize=16)
def _flow_run_context(flow: str) -> FlowRunContext:
    """The context of a flow run, built once a worker: it is entered by one job at a time."""
    about = json.loads(flow)
    fields: dict[str, Any] = {
        "flow": SimpleNamespace(**about["flow"]),
        "flow_run": FlowRun.model_validate(about["flow_run"]),
        "parameters": about["parameters"],
        "task_runner": NoTaskRunner().__enter__(),
        "result_store": _result_store(),
        "persist_result": False,
        "detached": True,
    }
    return FlowRunContext.model_construct(**fields)


@functools.cache
def _result_store() -> ResultStore:
    """For what Prefect's engines run here: a task or a flow that the function calls."""
    return ResultStore()


@functools.lru_cache(maxsize=1)  # nothing to do where the job before was the same flow run's
def _use_settings(flow: str | None) -> None:
    """Have Prefect's settings here be the flow run's, and those of what the function starts: they may come from a
    `temporary_settings` or another profile, or from an environment that was changed since the worker's was made."""
    wanted = _own_variables() | (json.loads(flow)["settings"] if flow is not None else {})
    now = _prefect_variables()
    if wanted == now:
        return
    for name in now.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)
    refresh_global_settings_context()
    _result_store.cache_clear()


@functools.cache
def _own_variables() -> dict[str, str]:
    """Those that the worker was started with."""
    return _prefect_variables()


def _prefect_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}


def is_worker() -> bool:
    """Whether this process is a worker that has run a job of Prefect's."""
    return prepare_process.cache_info().currsize > 0


@functools.cache
def prepare_process() -> None:
    """Leave the logging of this worker to the pool: Prefect's own handlers would write each record a second time. And
    have its last events sent: Prefect does so when the interpreter waits for its threads, and a worker does not."""
    atexit.register(_flush_events)
    handlers = list(logging.root.handlers)
    importlib.import_module("prefect.main")  # sets up the levels of Prefect's loggers, and replaces root's handlers
    logging.root.handlers = handlers
    job_logger.filters.clear()  # the parent hands its records to the task run's log
    loggers = (logging.getLogger(name) for name in ("", *logging.root.manager.loggerDict))
    for logger in loggers:
        for handler in list(logger.handlers):
            if isinstance(handler, APILogHandler | PrefectConsoleHandler):
                logger.removeHandler(handler)


def _flush_events() -> None:
    """Send what functions have emitted here; nothing where none has."""
    EventsWorker.drain_all(timeout=FLUSH_SECONDS)
