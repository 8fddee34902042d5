"""The Prefect contexts that a function sees in a job, which are filled when something of them is first read.

Prefect decides by `get_run_context().task` whether a call is synchronous, and takes clients, stores and ids from the
contexts, so every field is that of a real one. Most functions read none of them: filling them takes as long as
everything else around a short function. What may ask the server, clients and result stores, is made when it is read
itself.
"""

from __future__ import annotations

import base64
import contextvars
import copy
import functools
import json
import pickle
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, Self, cast
from uuid import uuid4

from prefect import Flow, Task
from prefect.client.orchestration import PrefectClient, SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, TaskRun, TaskRunPolicy
from prefect.context import ContextModel, FlowRunContext, SyncClientContext, TaskRunContext
from prefect.futures import PrefectFuture
from prefect.results import ResultStore
from prefect.task_runners import TaskRunner
from prefect.utilities.callables import get_call_parameters
from pydantic import PrivateAttr

from executor_adapter.exceptions.display import text_of
from executor_adapter.job import is_coroutine_function
from executor_adapter.worker.context import BoundCall


class _FilledWhenRead:
    """Fills a context by `make_fields` when a field is first read; field `x` by `make_x`, where that is defined."""

    @classmethod
    def of(cls, *sources: Any) -> Self:
        """Return a context that `make_fields` fills from `sources`: a copy, which is the quickest way to make one."""
        blank: Self = copy.copy(_blank(cast(Any, cls)))
        return blank.with_sources(*sources)

    def with_sources(self, *sources: Any) -> Self:
        self._sources = sources
        return self

    def __getattr__(self, name: str) -> Any:
        own_class: Any = type(self)
        if hasattr(own_class, f"make_{name}"):
            vars(self)[name] = getattr(self, f"make_{name}")()
        elif name in own_class.model_fields:
            filled = own_class.model_construct(**self.make_fields())  # With the defaults of the other fields.
            vars(self).update(vars(filled) | vars(self))
            self.__pydantic_fields_set__.update(vars(self))
        else:
            return super().__getattr__(name)  # type: ignore[misc]  # Pydantic's own finds private attributes.
        return vars(self)[name]

    def make_fields(self) -> dict[str, Any]:
        return {}

    def serialize(self, include_secrets: bool = True) -> dict[str, Any]:
        hasattr(self, "start_time")  # Reading it, where there is one, fills the context.
        return super().serialize(include_secrets=include_secrets)  # type: ignore[misc, no-any-return]


@functools.cache
def _blank(context: Any) -> Any:
    blank = context.model_construct()
    vars(blank).clear()
    return blank


class JobRunContext(_FilledWhenRead, TaskRunContext):
    """The context of the task run around a function."""

    _sources: tuple[dict[str, Any], BoundCall] = PrivateAttr()
    """The payload of the attempt, and the call."""

    def make_fields(self) -> dict[str, Any]:
        received, call = self._sources
        task = task_of_function(call.function, received.get("task") or "{}")
        task_run = _task_run(received["task_run"], task)
        assert task_run.state is not None, "it is Running"
        return {
            "task": task,
            "task_run": task_run,
            "start_time": task_run.state.timestamp,
            "parameters": _parameters(call),
            "log_prints": received["log_prints"],
            "persist_result": received["persist_result"],
        }

    def make_result_store(self) -> ResultStore:
        flow_run = FlowRunContext.get()
        store = flow_run.result_store if flow_run is not None else default_result_store()
        return cast(ResultStore, store.update_for_task(self.task, _sync=True))  # type: ignore[call-arg]

    def make_client(self) -> PrefectClient | SyncPrefectClient:
        return get_client() if self.task.isasync else get_client(sync_client=True)


def _task_run(received: dict[str, Any], task: WorkerTask) -> TaskRun:
    fields = {"flow_run_id": None, "tags": [], **received}
    started = fields.get("start_time") or datetime.now(UTC)
    details = {"task_run_id": fields["id"], "flow_run_id": fields["flow_run_id"]}
    running = {"type": "RUNNING", "name": "Running", "timestamp": started, "state_details": details}
    task_run = TaskRun.model_validate({**fields, "state": running | fields.get("state", {})})
    assert task_run.state is not None, "it has just been given"
    task_run.state_id, task_run.state_name = task_run.state.id, task_run.state.name
    task_run.state_type = task_run.state.type
    task_run.empirical_policy = TaskRunPolicy.model_construct(
        retries=task.retries, retry_delay=task.retry_delay_seconds, retry_jitter_factor=task.retry_jitter_factor
    )
    return task_run


def _parameters(call: BoundCall) -> dict[str, Any]:
    function, args, kwargs = call
    try:
        return get_call_parameters(function, args, dict(kwargs))
    except (TypeError, ValueError):  # It has no signature, as some builtins.
        return {**({"args": args} if args else {}), **kwargs}


class JobFlowRunContext(_FilledWhenRead, FlowRunContext):
    """The context of the flow run around a function in a worker process. It cannot submit tasks."""

    _sources: tuple[FlowRunParts] = PrivateAttr()

    def make_fields(self) -> dict[str, Any]:
        return {
            **self._sources[0].fields,
            "task_runner": NoTaskRunner().__enter__(),  # type: ignore[no-untyped-call]
            # Prefect numbers the pauses of a flow run by this count, and a server takes a pause whose number it has
            # seen for one that is over: each attempt starts from a number of its own.
            "observed_flow_pauses": {"counter": uuid4().int >> 64},
        }

    def make_result_store(self) -> ResultStore:
        return self._sources[0].result_store

    def make_client(self) -> PrefectClient | SyncPrefectClient:
        return get_client() if self.flow is not None and self.flow.isasync else get_client(sync_client=True)


class FlowRunParts:
    """What all jobs of one flow run share in a worker."""

    def __init__(self, received: dict[str, Any]) -> None:
        self._received = received

    @functools.cached_property
    def fields(self) -> dict[str, Any]:
        """The fields of the context that are the same for all jobs."""
        received, facts = self._received, self._received["flow"]
        flow = Flow(_function_of_the_flow, name=facts["name"], task_runner=NoTaskRunner())  # type: ignore[no-untyped-call]
        vars(flow).update(facts)
        parameters = received_values(received.get("parameters", {}), "flow parameter {}")
        flow_run = _flow_run(received, parameters)
        return {
            "flow": flow,
            "flow_run": flow_run,
            "parameters": parameters,
            "start_time": flow_run.start_time or datetime.now(UTC),
            "log_prints": received.get("log_prints", False),
            "persist_result": received.get("persist_result", False),
            "input_keyset": received.get("input_keyset"),
            "detached": True,
        }

    @functools.cached_property
    def result_store(self) -> ResultStore:
        """The result store of the flow."""
        sent = self._received.get("result_store")
        if sent is None:
            flow = self.fields["flow"]
            return cast(ResultStore, ResultStore().update_for_flow(flow, _sync=True))  # type: ignore[call-arg]
        return ResultStore(**received_values(sent, "the result store of the flow")["fields"])


def _flow_run(received: dict[str, Any], parameters: dict[str, Any]) -> FlowRun:
    facts = received["flow"]
    flow_run = FlowRun.model_validate({"flow_version": facts.get("version"), **received["flow_run"]})
    policy = FlowRunPolicy(retries=facts.get("retries", 0), retry_delay=facts.get("retry_delay_seconds", 0))
    update: dict[str, Any] = {"parameters": parameters, "empirical_policy": policy}
    if (state := flow_run.state) is not None:
        update |= {"state_id": state.id, "state_type": state.type, "state_name": state.name}
    return flow_run.model_copy(update=update)


def _function_of_the_flow() -> NoReturn:
    raise NotSentError("the function of the flow is not sent to worker processes: import the flow, and call that")


default_result_store = functools.cache(ResultStore)
"""Returns the result store of a task run without a flow run."""


class NoTaskRunner(TaskRunner[PrefectFuture[Any]]):
    """Refuses to submit tasks in a worker process, in place of the flow's task runner in the parent."""

    def duplicate(self) -> Self:
        """Return another one."""
        return type(self)()

    def submit(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to submit a task.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "a job in a worker process cannot submit tasks: submit them in the flow, or use pool='thread'"
        )


class SharedClientContext(SyncClientContext):
    """Lets the code within it use a client that others use too: entering and leaving it leaves the client as it is."""

    __enter__, __exit__ = ContextModel.__enter__, ContextModel.__exit__


class WorkerClientContext(_FilledWhenRead, SharedClientContext):
    """Holds the client of a worker process: one for all its jobs, which connects when it is first used."""

    _sources: tuple[()] = PrivateAttr()

    def make_client(self) -> SyncPrefectClient:
        # In a context without this one, whose client would be asked for.
        return contextvars.Context().run(get_client, sync_client=True).__enter__()

    def disconnect(self) -> None:
        """Leave the client, which a forked process must not share, and make another when one is needed."""
        vars(self).pop("client", None)


# --- what was sent, see `payload` ---


class NotSentError(AttributeError):
    """Raised where a function reads what its worker process was not sent."""


class NotSent:
    """Stands for a value that a worker process was not sent; any use of it raises NotSentError."""

    def __init__(self, what: str, why: str) -> None:
        vars(self).update(message=f"{what} was not sent to this worker process: {why}")

    def __repr__(self) -> str:
        return f"<{vars(self)['message']}>"

    def _raise(self, *_: Any) -> NoReturn:
        raise NotSentError(vars(self).get("message", "it was not sent"))

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __eq__ = __lt__ = __gt__ = __call__ = __add__ = _raise
    __hash__ = None  # type: ignore[assignment]


def received_values(sent: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the values that `payload.sendable` has packed; a NotSent stands for each that could not be packed.

    `what`: what the values are, for a message, with `{}` for the name.
    """
    values = dict(sent.get("plain", {}))
    for name, encoded in sent.get("pickled", {}).items():
        try:
            values[name] = pickle.loads(base64.b64decode(encoded))
        except Exception as error:
            values[name] = NotSent(what.format(name), f"it cannot be unpickled: {text_of(error)}")
    for name, why in sent.get("refused", {}).items():
        values[name] = NotSent(what.format(name), why)
    return values


class WorkerTask(Task[..., Any]):
    """The task of a job, as its function sees it in a worker process. It is called there as any Prefect task."""

    facts: str

    def __reduce__(self) -> tuple[Any, ...]:
        return task_of_function, (self.fn, self.facts)


def task_of_function(function: Callable[..., Any], facts: str) -> WorkerTask:
    """Return the task of `function` whose attributes are `facts`, see `payload.task_facts`."""
    try:
        hash(function)
    except TypeError:
        return _new_task(function, facts)
    return _known_task(function, facts)


def _new_task(function: Callable[..., Any], facts: str) -> WorkerTask:
    try:
        task = WorkerTask(function)
    except Exception:  # Prefect makes no tasks of some callables, and of functions with a parameter named `wait_for`.
        task = WorkerTask(_function_of_no_task, name=getattr(function, "__name__", type(function).__name__))
        task.fn = function
    task.isasync = task.isasync or is_coroutine_function(function)
    vars(task).update(received_values(json.loads(facts), "task attribute {}"), facts=facts)
    return task


_known_task = functools.lru_cache(maxsize=4)(_new_task)  # Few, because a function may refer to large values.


def _function_of_no_task(*_: Any, **__: Any) -> None:
    """The function of a task until it is given its own, which Prefect would refuse."""
