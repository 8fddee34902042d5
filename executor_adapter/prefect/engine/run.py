"""Runs one task run of a job task to its end, as `prefect.task_engine.run_task` does for a task."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal
from weakref import WeakKeyDictionary

from prefect.client.orchestration import PrefectClient, SyncPrefectClient, get_client
from prefect.client.schemas.objects import TaskRun
from prefect.context import AsyncClientContext, ContextModel, SyncClientContext
from prefect.transactions import AsyncTransaction, Transaction, get_transaction
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.engine import should_log_prints

from executor_adapter.prefect.child.contexts import SharedClientContext
from executor_adapter.prefect.child.logs import patch_print
from executor_adapter.prefect.engine.engine import JobEngine, raise_if_suspended
from executor_adapter.prefect.engine.job_run import JobRun, driving
from executor_adapter.prefect.engine.task_runs import create_task_run

ReturnType = Literal["state", "result"]


def run_sync(
    job_run: JobRun,
    parameters: dict[str, Any],
    *,
    wait_for: Iterable[Any] | None = None,
    return_type: ReturnType = "result",
    task_run: TaskRun | None = None,
) -> Any:
    """Run the task of `job_run` to its end and return its value, or its final State with `return_type="state"`.

    `task_run`: an existing task run, already reported as Pending; by default a new one is made.

    Raises:
        Exception: the function's own, or the executor's; with `return_type="state"` it is in the state instead.
    """
    with _new_engine(job_run, parameters, wait_for, task_run) as engine:
        try:
            with engine.start():
                while engine.is_running():
                    engine.wait_until_ready()
                    with engine.asset_context(), engine.run_context(), engine.transaction_context() as transaction:
                        engine.call_task_fn(transaction)
                    raise_if_suspended()
        except Exception as error:
            if not engine.is_unfinished():
                raise
            engine.handle_exception(job_run.refuse_attempts(error))
    return engine.state if return_type == "state" else engine.result()


@contextlib.contextmanager
def _new_engine(
    job_run: JobRun, parameters: dict[str, Any], wait_for: Iterable[Any] | None, task_run: TaskRun | None
) -> Iterator[JobEngine]:
    """Make an engine that drives the job within the block; on leaving, release everything the job holds."""
    if should_log_prints(job_run.task):
        patch_print()
    with driving(job_run.task), contextlib.closing(job_run), one_client_of_flow(), transaction_of_flow():
        yield JobEngine(
            task=job_run.task,
            parameters=parameters,
            task_run=task_run or create_task_run(job_run, parameters, wait_for),
            wait_for=wait_for,
            job_run=job_run,
        )


# --- what the engines of an async flow share ---

_clients: WeakKeyDictionary[PrefectClient, SyncPrefectClient] = WeakKeyDictionary()
"""The clients of engines in async flows, by the client of the flow, which an engine in a thread cannot use."""
_lock = threading.Lock()


def one_client_of_flow() -> AbstractContextManager[object]:
    """Let the engines of an async flow use one client: each would make its own, which takes far longer than a task."""
    flow = AsyncClientContext.get()
    if flow is None or SyncClientContext.get() is not None:
        return contextlib.nullcontext()
    with _lock:
        if (shared := _clients.get(flow.client)) is None:
            shared = _clients[flow.client] = get_client(sync_client=True).__enter__()
            weakref.finalize(flow.client, shared.__exit__, None, None, None)
    return SharedClientContext.model_construct(client=shared)


class TransactionOfFlow(Transaction):
    """Stands for the async transaction around a task: the engine's own takes it for its parent, and awaits nothing."""

    __enter__, __exit__ = ContextModel.__enter__, ContextModel.__exit__

    def add_child(self, transaction: Any) -> None:
        """Let the transaction around commit a task's, or roll it back."""
        around = self.get_parent()
        assert around is not None, "it was made because of one"
        around.add_child(transaction)

    def rollback(self) -> bool:
        """Roll the transaction around back, because a task in it has failed."""
        around: Any = self.get_parent()
        return bool(run_coro_as_sync(around.rollback()))


def transaction_of_flow() -> AbstractContextManager[object]:
    """Let an engine in the block take part in the async transaction around it, if there is one."""
    around = get_transaction()
    if not isinstance(around, AsyncTransaction):
        return contextlib.nullcontext()
    return TransactionOfFlow(commit_mode=around.commit_mode, isolation_level=around.isolation_level)
