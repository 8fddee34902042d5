"""The Prefect contexts that a function sees in a job, whose fields are made when they are first read.

Prefect decides by `get_run_context().task` whether a call is synchronous, and takes clients, stores and ids from the
contexts, so every field is that of a real one. Most functions read none of them: making them all takes as long as
everything else around a short function.
"""

from __future__ import annotations

import contextvars
import copy
import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar, NoReturn, Self, cast
from uuid import uuid4

from prefect import Flow
from prefect.client.orchestration import PrefectClient, SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, TaskRun, TaskRunPolicy
from prefect.context import ContextModel, FlowRunContext, SyncClientContext, TaskRunContext
from prefect.futures import PrefectFuture
from prefect.results import ResultStore
from prefect.task_runners import TaskRunner
from prefect.types import DateTime
from prefect.utilities.callables import get_call_parameters
from pydantic import PrivateAttr

from executor_adapter.prefect.child.received import NotSentError, WorkerTask, received_values, task_of_function
from executor_adapter.worker import BoundCall


class _LazyFields:
    """Makes the fields of a context when they are first read: field `x` by the method `make_x`, or as its default."""

    made_when_read: ClassVar[frozenset[str]]

    def __getattr__(self, name: str) -> Any:
        own_class: Any = type(self)
        if name in own_class.made_when_read:
            value = getattr(self, f"make_{name}")()
        elif name in _factories(own_class):
            value = _factories(own_class)[name]()
        else:
            return super().__getattr__(name)  # type: ignore[misc]  # Pydantic's own finds private attributes.
        vars(self)[name] = value
        self.__pydantic_fields_set__.add(name)
        return value

    def make_all(self) -> None:
        """Make all fields, because something reads them by other ways."""
        own_class: Any = type(self)
        for name in (*own_class.made_when_read, *_factories(own_class)):
            getattr(self, name)


@functools.cache
def _factories(context: Any) -> dict[str, Callable[[], Any]]:
    """Return what makes the defaults of the fields of a class of contexts."""
    return {
        name: field.default_factory
        for name, field in context.model_fields.items()
        if field.default_factory is not None and name not in context.made_when_read
    }


@functools.cache
def _blank(context: Any) -> Any:
    """Return a context without the fields that are made when they are read, to be copied: that is the quickest way."""
    blank = context.model_construct()
    for name in (*context.made_when_read, *_factories(context)):
        vars(blank).pop(name, None)
    return blank


class JobRunContext(_LazyFields, TaskRunContext):
    """The context of the task run around a function."""

    made_when_read: ClassVar = frozenset({"task", "task_run", "start_time", "parameters", "result_store", "client"})
    _received: dict[str, Any] = PrivateAttr()
    _call: BoundCall = PrivateAttr()

    @classmethod
    def of(cls, received: dict[str, Any], call: BoundCall) -> Self:
        """Return the context of a call; `received` is the payload of its attempt."""
        blank: Self = copy.copy(_blank(cls))
        return blank.made_from(received, call)

    def made_from(self, received: dict[str, Any], call: BoundCall) -> Self:
        """Set what the fields are made from."""
        vars(self).update(log_prints=received["log_prints"], persist_result=received["persist_result"])
        self._received, self._call = received, call
        return self

    def make_task(self) -> WorkerTask:
        return task_of_function(self._call.function, self._received.get("task") or "{}")

    def make_task_run(self) -> TaskRun:
        fields = {"flow_run_id": None, "tags": [], **self._received["task_run"]}
        started = fields.get("start_time") or datetime.now(UTC)
        state = {"type": "RUNNING", "name": "Running", "timestamp": started, **fields.pop("state", {})}
        details = {"task_run_id": fields["id"], "flow_run_id": fields["flow_run_id"]}
        task_run = TaskRun.model_validate({**fields, "state": {**state, "state_details": details}})
        assert task_run.state is not None, "it has just been given"
        task_run.state_id, task_run.state_name = task_run.state.id, task_run.state.name
        task_run.state_type = task_run.state.type
        task = self.task
        task_run.empirical_policy = TaskRunPolicy.model_construct(
            retries=task.retries, retry_delay=task.retry_delay_seconds, retry_jitter_factor=task.retry_jitter_factor
        )
        return task_run

    def make_start_time(self) -> DateTime:
        assert self.task_run.state is not None, "it is Running"
        return cast(DateTime, self.task_run.state.timestamp)

    def make_parameters(self) -> dict[str, Any]:
        function, args, kwargs = self._call
        try:
            return get_call_parameters(function, args, dict(kwargs))
        except (TypeError, ValueError):  # It has no signature, as some builtins.
            return {**({"args": args} if args else {}), **kwargs}

    def make_result_store(self) -> ResultStore:
        flow_run = FlowRunContext.get()
        store = flow_run.result_store if flow_run is not None else default_result_store()
        return cast(ResultStore, store.update_for_task(self.task, _sync=True))  # type: ignore[call-arg]

    def make_client(self) -> PrefectClient | SyncPrefectClient:
        return get_client() if self.task.isasync else get_client(sync_client=True)

    def serialize(self, include_secrets: bool = True) -> dict[str, Any]:
        self.make_all()
        return super().serialize(include_secrets=include_secrets)


class JobFlowRunContext(_LazyFields, FlowRunContext):
    """The context of the flow run around a function in a worker process. It cannot submit tasks."""

    made_when_read: ClassVar = frozenset(
        {
            "flow",
            "flow_run",
            "start_time",
            "parameters",
            "task_runner",
            "result_store",
            "client",
            "observed_flow_pauses",
        }
    )
    _parts: FlowRunParts = PrivateAttr()

    @classmethod
    def of(cls, parts: FlowRunParts) -> Self:
        """Return the context of a flow run for one attempt."""
        blank: Self = copy.copy(_blank(cls))
        return blank.made_from(parts)

    def made_from(self, parts: FlowRunParts) -> Self:
        """Set what the fields are made from."""
        received = parts.received
        vars(self).update(
            log_prints=received.get("log_prints", False),
            persist_result=received.get("persist_result", False),
            input_keyset=received.get("input_keyset"),
            detached=True,
        )
        self._parts = parts
        return self

    def make_flow(self) -> Flow[..., Any]:
        return self._parts.flow

    def make_flow_run(self) -> FlowRun:
        return self._parts.flow_run

    def make_parameters(self) -> dict[str, Any]:
        return self._parts.parameters

    def make_start_time(self) -> DateTime:
        return self._parts.flow_run.start_time or cast(DateTime, datetime.now(UTC))

    def make_task_runner(self) -> TaskRunner[Any]:
        return NoTaskRunner().__enter__()

    def make_result_store(self) -> ResultStore:
        return self._parts.result_store

    def make_observed_flow_pauses(self) -> dict[str, int]:
        # Prefect numbers the pauses of a flow run by this count, and a server takes a pause whose number it has seen
        # for one that is over: each attempt starts from a number of its own.
        return {"counter": uuid4().int >> 64}

    def make_client(self) -> PrefectClient | SyncPrefectClient:
        return get_client() if self.flow is not None and self.flow.isasync else get_client(sync_client=True)

    def serialize(self, include_secrets: bool = True) -> dict[str, Any]:
        self.make_all()
        return super().serialize(include_secrets=include_secrets)


class FlowRunParts:
    """What all jobs of one flow run share in a worker, each part made when it is first read."""

    def __init__(self, received: dict[str, Any]) -> None:
        self.received = received

    @functools.cached_property
    def parameters(self) -> dict[str, Any]:
        return received_values(self.received.get("parameters", {}), "flow parameter {}")

    @functools.cached_property
    def flow_run(self) -> FlowRun:
        facts, fields = self.received["flow"], self.received["flow_run"]
        flow_run = FlowRun.model_validate({"flow_version": facts.get("version"), **fields})
        policy = FlowRunPolicy(retries=facts.get("retries", 0), retry_delay=facts.get("retry_delay_seconds", 0))
        update: dict[str, Any] = {"parameters": self.parameters, "empirical_policy": policy}
        if (state := flow_run.state) is not None:
            update |= {"state_id": state.id, "state_type": state.type, "state_name": state.name}
        return flow_run.model_copy(update=update)

    @functools.cached_property
    def flow(self) -> Flow[..., Any]:
        facts = self.received["flow"]
        flow = Flow(_function_of_the_flow, name=facts["name"], task_runner=NoTaskRunner())
        vars(flow).update(facts)
        return flow

    @functools.cached_property
    def result_store(self) -> ResultStore:
        sent = self.received.get("result_store")
        if sent is None:
            return cast(ResultStore, ResultStore().update_for_flow(self.flow, _sync=True))  # type: ignore[call-arg]
        return ResultStore(**received_values(sent, "the result store of the flow")["fields"])


def _function_of_the_flow() -> NoReturn:
    raise NotSentError("the function of the flow is not sent to worker processes: import the flow, and call that")


@functools.cache
def default_result_store() -> ResultStore:
    """Return the result store of a task run without a flow run."""
    return ResultStore()


class NoTaskRunner(TaskRunner[PrefectFuture[Any]]):
    """Refuses to submit tasks in a worker process, in place of the flow's task runner in the parent."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

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


class WorkerClientContext(_LazyFields, SyncClientContext):
    """Holds the client of a worker process: one for all its jobs, which connects when it is first used."""

    made_when_read: ClassVar = frozenset({"client"})

    @classmethod
    def new(cls) -> Self:
        """Return a context that is not connected."""
        blank: Self = copy.copy(_blank(cls))
        return blank

    def make_client(self) -> SyncPrefectClient:
        def connect() -> SyncPrefectClient:
            SyncClientContext.__var__.set(cast(Any, None))  # Otherwise the client of this context is asked for.
            return get_client(sync_client=True).__enter__()

        return contextvars.copy_context().run(connect)

    def disconnect(self) -> None:
        """Leave the client, which a forked process must not share, and make another when one is needed."""
        vars(self).pop("client", None)

    def __enter__(self) -> Self:
        return ContextModel.__enter__(self)

    def __exit__(self, *error: Any) -> None:
        ContextModel.__exit__(self, *error)
