"""Packs what a function may see of its task run and flow run, in the flow's process, as JSON for `task_run_scope`.

There is a payload for each attempt, so it is about 1 KB, and holds nothing that the worker has anyway: the function and
its arguments come with the job. What the attempts of a task or a flow run share is packed once, as JSON within the
JSON: a worker reads such a part once, too.
"""

from __future__ import annotations

import base64
import functools
import inspect
import json
import logging
import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import TaskRun
from prefect.context import AsyncClientContext, FlowRunContext, SyncClientContext, TagsContext, TaskRunContext
from prefect.settings import Settings, get_current_settings

from executor_adapter.exceptions.display import text_of
from executor_adapter.executor import preload_in_workers, read_threads_from
from executor_adapter.pools.transport.functions import dump_by_value

PRELOAD = (
    "prefect.main",
    "executor_adapter.prefect.tasks",
    "executor_adapter.prefect.runners.job_task_runner",
    "executor_adapter.prefect.child.preload",
)
"""The modules that a worker needs for job tasks. They take 0.6 s to import, so they are imported before the fork."""

# Once for each program that runs jobs as task runs.
preload_in_workers(*PRELOAD)
read_threads_from(lambda: get_current_settings().tasks.runner.thread_pool_max_workers)

MAX_PICKLED_BYTES = 8192
"""Size of the values that are sent pickled with each attempt; larger ones are refused where they are read."""

MAX_LISTED = 50
"""Items of a list that is sent as JSON; longer lists are sent pickled."""

_TASK_RUN_FIELDS: Any = {
    "id": True, "name": True, "flow_run_id": True, "task_key": True, "dynamic_key": True, "task_version": True,
    "tags": True, "run_count": True, "flow_run_run_count": True, "start_time": True, "expected_start_time": True,
    "task_inputs": True, "state": {"id", "type", "name", "timestamp"},
}  # fmt: skip
_FLOW_RUN_FIELDS_LEFT_OUT: Any = {
    "parameters": True, "created": True, "updated": True, "estimated_run_time": True,
    "estimated_start_time_delta": True, "state_id": True, "state_type": True, "state_name": True, "flow_version": True,
    "empirical_policy": True, "state": {"state_details", "data"},
}  # fmt: skip
_PLAIN = (str, int, float, bool, type(None))


def compact(value: Any) -> str:
    """Return `value` as JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def task_run_payload(task: Task[..., Any], task_run: TaskRun) -> str:
    """Return, as JSON, the part of the task run and of the flow run around the caller that the worker needs."""
    context = TaskRunContext.get()
    run = task_run.model_dump(mode="json", include=_TASK_RUN_FIELDS, exclude_defaults=True)
    return compact(
        {
            "task_run": run,
            "task": task_facts(task),
            "tags": sorted(TagsContext.get().current_tags),
            "log_prints": context is not None and context.log_prints,
            "persist_result": context is not None and context.persist_result,
            "flow": flow_run_payload(FlowRunContext.get()),
        }
    )


# --- the task ---


@functools.cache
def _default_task() -> dict[str, Any]:
    return vars(Task(lambda: None))


_OF_THE_FUNCTION = {
    "fn", "isasync", "isgenerator", "source_code", "task_key", "__wrapped__", "__module__", "__name__", "__qualname__",
    "__doc__", "__annotations__", "__type_params__",
}  # fmt: skip
"""Attributes of a task that follow from its function, or are sent with its task run."""

_OF_THIS_PACKAGE = {"job_options", "with_options"}

_facts: weakref.WeakKeyDictionary[Task[..., Any], tuple[list[int], str]] = weakref.WeakKeyDictionary()


def version_of(task: Task[..., Any]) -> list[int]:
    """Return what differs once an attribute of the task was set, or a hook added, after an earlier call."""
    return [len(value) if type(value) is list else id(value) for value in vars(task).values()]


def task_facts(task: Task[..., Any]) -> str:
    """Return, as JSON, the attributes of the task that a task of the same function would not have by default."""
    version = version_of(task)
    known = _facts.get(task)
    if known is None or known[0] != version:
        known = _facts[task] = version, compact(_sendable(_own_attributes(task)))
    return known[1]


def _own_attributes(task: Task[..., Any]) -> dict[str, Any]:
    function = vars(task)["fn"]  # A job task may have another one for the engine around the caller.
    defaults = _default_task() | {"name": getattr(function, "__name__", None), "description": inspect.getdoc(function)}
    of_function = getattr(function, "__dict__", {})
    return {
        name: value
        for name, value in vars(task).items()
        if name not in _OF_THE_FUNCTION | _OF_THIS_PACKAGE
        and not (name in defaults and _is_same(value, defaults[name]))
        and of_function.get(name) is not value
    }


def _is_same(value: Any, default: Any) -> bool:
    try:
        return type(value) is type(default) and bool(value == default)
    except Exception:  # A value may refuse to be compared.
        return False


def _sendable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as JSON can hold them: plain ones, pickled ones, and the reasons why others cannot be sent."""
    plain = {name: value for name, value in values.items() if _is_plain(value)}
    pickled: dict[str, str] = {}
    refused: dict[str, str] = {}
    for name, value in (item for item in values.items() if item[0] not in plain):
        try:
            encoded = dump_by_value(value)
        except Exception as error:
            refused[name] = f"it cannot be pickled: {text_of(error)}"
            continue
        if len(encoded) > MAX_PICKLED_BYTES:
            refused[name] = f"it is too large, {len(encoded)} bytes of at most {MAX_PICKLED_BYTES}"
        else:
            pickled[name] = base64.b64encode(encoded).decode()
    sent = {"plain": plain, "pickled": pickled, "refused": refused}
    return {kind: values for kind, values in sent.items() if values}


def _is_plain(value: Any) -> bool:
    """Return whether JSON gives the same value back, and it is short."""
    if type(value) is list:
        return len(value) <= MAX_LISTED and all(map(_is_plain, value))
    return type(value) in _PLAIN and (type(value) is not str or len(value) <= MAX_PICKLED_BYTES)


# --- the flow run ---


def flow_run_payload(context: FlowRunContext | None) -> str:
    """Return, as JSON, the settings and the part of the flow run that the worker needs, if there is one.

    It is the same for all task runs of the flow run, unless the program changes the level of a logger.
    """
    settings = get_current_settings()
    loggers = settings.logging.extra_loggers or ()  # Prefect sends their records to the server.
    process = {"log_levels": {name: logging.getLogger(name).getEffectiveLevel() for name in loggers}}
    if context is None or context.flow_run is None:
        return compact(process | {"settings": _settings_variables(settings)})
    with _packing:
        last = _last_flow_run
        if not last or last[0]() is not context.flow_run or last[1] is not settings or last[2] != process:
            payload = compact(process | _flow_run_payload(context, settings))
            last[:] = weakref.ref(context.flow_run), settings, process, payload
        return str(last[3])


_last_flow_run: list[Any] = []
"""The flow run packed last, its settings, levels and payload; the next call nearly always packs the same one."""
_packing = threading.Condition()
"""The first task runs of a flow run come together, and packing it takes far longer than all else of a task run."""
os.register_at_fork(after_in_child=_packing.__init__)  # type: ignore[misc]  # A thread of the parent may hold it.


def _flow_run_payload(context: FlowRunContext, settings: Settings) -> dict[str, Any]:
    flow_run = context.flow_run
    assert flow_run is not None, "only a flow run is packed"
    fields = json.loads(flow_run.model_dump_json(exclude=_FLOW_RUN_FIELDS_LEFT_OUT, exclude_defaults=True))
    attributes = [("name", "<unknown>")] if context.flow is None else vars(context.flow).items()
    plain = {name: value for name, value in attributes if type(value) in _PLAIN}
    optional = {
        "parameters": _sendable(context.parameters or {}),
        "log_prints": context.log_prints,
        "persist_result": context.persist_result,
        "input_keyset": context.input_keyset,
        "result_store": _result_store(context),
    }
    return {
        "flow": {name: value for name, value in plain.items() if value is not None and not name.startswith("_")},
        "flow_run": {name: value for name, value in fields.items() if value},
        **{name: value for name, value in optional.items() if value},
        "settings": _settings_variables(settings),
    }


def _result_store(context: FlowRunContext) -> dict[str, Any] | None:
    """Return the flow's result store; None for that of a flow without options for it.

    Its storage is sent whole, because a dump of a saved block leaves out the id by which results are found again. A
    block that cannot be pickled is sent as Prefect does it, as a dump.
    """
    flow, flow_run, store = context.flow, context.flow_run, context.result_store
    is_nested = flow_run is not None and flow_run.parent_task_run_id is not None
    if flow is None or not (is_nested or flow.result_storage is not None or flow.result_serializer is not None):
        return None
    fields = store.model_dump(serialize_as_any=True, exclude_unset=True, context={"include_secrets": True})
    whole = _sendable({"fields": fields | {"result_storage": store.result_storage}})
    return _sendable({"fields": fields}) if "refused" in whole else whole


def _settings_variables(settings: Settings) -> dict[str, str]:
    """Return Prefect's settings around the caller, without the defaults, as environment variables.

    The address of an embedded server is one of them: without it a worker would start another server.
    """
    if not _last_settings or _last_settings[0] is not settings:
        _last_settings[:] = settings, settings.to_environment_variables(exclude_unset=True)
    variables: dict[str, str] = _last_settings[1]
    if settings.api.url is None and (context := SyncClientContext.get() or AsyncClientContext.get()) is not None:
        return variables | {"PREFECT_API_URL": str(context.client.api_url).rstrip("/")}
    return variables


_last_settings: list[Any] = []
"""The settings converted last and their variables; the next call nearly always converts the same settings."""
