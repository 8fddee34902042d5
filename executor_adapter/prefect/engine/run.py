"""Runs one task run of a job task to its end, as `prefect.task_engine.run_task` does for a task."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Literal
from weakref import WeakKeyDictionary

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.transactions import AsyncTransaction, Transaction, get_transaction
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.engine import should_log_prints

from executor_adapter.prefect.child.logs import patch_print
from executor_adapter.prefect.engine.engine import INTERRUPT_TIMEOUT, JobEngine, raise_if_suspended
from executor_adapter.prefect.engine.job_run import JobRun, driving
from executor_adapter.prefect.engine.task_runs import create_task_run
from executor_adapter.prefect.engine.threads import result_of, run_in_thread

ReturnType = Literal["state", "result"]

_NO_SCOPE = contextlib.nullcontext()


def run_sync(
    job_run: JobRun,
    parameters: dict[str, Any],
    *,
    wait_for: Iterable[Any] | None = None,
    return_type: ReturnType = "result",
    task_run: TaskRun | None = None,
    scope: AbstractContextManager[object] = _NO_SCOPE,
) -> Any:
    """Run the task of `job_run` to its end and return its value, or its final State with `return_type="state"`.

    `task_run`: an existing task run, already reported as Pending; by default a new one is made. `scope`: entered around
    the whole run.

    Raises:
        Exception: the function's own, or the executor's; with `return_type="state"` it is in the state instead.
    """
    with scope, _new_engine(job_run, parameters, wait_for, task_run) as engine:
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


async def run_async(
    job_run: JobRun,
    parameters: dict[str, Any],
    *,
    wait_for: Iterable[Any] | None = None,
    return_type: ReturnType = "result",
    scope: AbstractAsyncContextManager[object] = _NO_SCOPE,
) -> State[Any] | Any:
    """Do what `run_sync` does in a thread, and await it.

    Cancelling the caller ends the job, and returns once that is recorded: at most INTERRUPT_TIMEOUT later.
    """
    async with scope:
        run = functools.partial(run_sync, job_run, parameters, wait_for=wait_for, return_type=return_type)
        return await result_of(run_in_thread(run), job_run.interrupt, INTERRUPT_TIMEOUT)


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

_clients: WeakKeyDictionary[PrefectClient, SyncClientContext] = WeakKeyDictionary()
"""The clients of engines in async flows, by the client of the flow, which an engine in a thread cannot use."""
_lock = threading.Lock()


@contextlib.contextmanager
def one_client_of_flow() -> Iterator[None]:
    """Let the engines of an async flow use one client: each would make its own, which takes far longer than a task."""
    flow = AsyncClientContext.get()
    if flow is None or SyncClientContext.get() is not None:
        yield
        return
    with _lock:
        if (shared := _clients.get(flow.client)) is None:
            shared = _clients[flow.client] = SyncClientContext()
            shared.client.__enter__()
            weakref.finalize(flow.client, shared.client.__exit__, None, None, None)
    token = SyncClientContext.__var__.set(shared)
    try:
        yield
    finally:
        SyncClientContext.__var__.reset(token)


class TransactionOfFlow(Transaction):
    """Stands for the async transaction around a task: the engine's own takes it for its parent, and awaits nothing."""

    around: AsyncTransaction

    def get(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]  # As Prefect's own does.
        """Return a value of the transaction."""
        return self.around.get(*args, **options)

    def add_child(self, transaction: Any) -> None:
        """Let the transaction commit a task's, or roll it back."""
        self.around.add_child(transaction)

    def rollback(self) -> bool:
        """Roll the transaction back, because a task in it has failed."""
        return bool(run_coro_as_sync(self.around.rollback()))


@contextlib.contextmanager
def transaction_of_flow() -> Iterator[None]:
    """Let an engine in the block take part in the async transaction around it, if there is one."""
    around = get_transaction()
    if not isinstance(around, AsyncTransaction):
        yield
        return
    seen = TransactionOfFlow(around=around, commit_mode=around.commit_mode, isolation_level=around.isolation_level)
    token = Transaction.__var__.set(seen)
    try:
        yield
    finally:
        Transaction.__var__.reset(token)
