"""Runs one task run of a job task to its end, as `prefect.task_engine.run_task` does, and awaits one in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import anyio
from prefect.client.orchestration import PrefectClient, SyncPrefectClient, get_client
from prefect.client.schemas.objects import TaskRun
from prefect.context import AsyncClientContext, ContextModel, SyncClientContext
from prefect.exceptions import Pause
from prefect.transactions import AsyncTransaction, Transaction, get_transaction
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.engine import should_log_prints

from executor_adapter.pools.in_process.slot_loan import current_slot_loan
from executor_adapter.prefect.child.contexts import SharedClientContext
from executor_adapter.prefect.child.logs import patch_print
from executor_adapter.prefect.engine.engine import INTERRUPT_TIMEOUT, JobEngine, raise_if_suspended
from executor_adapter.prefect.engine.job_run import JobRun, driving
from executor_adapter.prefect.engine.task_runs import create_task_run

T = TypeVar("T")
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
            engine.handle_exception(job_run.refuse(error))
        except Pause as pause:  # The flow run was suspended before the engine had begun, or while a retry waited.
            if engine.is_unfinished():
                engine.handle_crash(pause)
            raise
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
_lock = threading.Condition()
os.register_at_fork(after_in_child=_lock.__init__)  # type: ignore[misc]  # A thread of the parent may hold it.


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


# --- awaited engines ---


def run_in_thread(function: Callable[[], T], name: str = "task-engine", *, daemon: bool = True) -> Future[T]:
    """Call `function` on a new thread, in the caller's context; the future gives what it returns.

    The interpreter's end does not wait for a `daemon`: an engine may wait for ever for what is no job, such as a lock.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=context_of_engine().run, args=(run,), name=name, daemon=daemon).start()
    return future


def context_of_engine() -> contextvars.Context:
    """Return a copy of the caller's context for an engine: one that waits for its inputs is not a job that waits."""
    context = contextvars.copy_context()
    context.run(current_slot_loan.set, None)
    return context


async def result_of_job(run: Callable[[], T], job_run: JobRun) -> T:
    """Return what `run()` returns on a thread, where it runs the task of `job_run`, or raise its error.

    When the caller is cancelled, the job is interrupted, and waited for at most INTERRUPT_TIMEOUT. If the wait was in
    vain, the log says so, and the executor does not wait for the job either: its engine may wait for something else.
    """
    running = run_in_thread(run)
    try:
        return await result_of(running, job_run.interrupt, INTERRUPT_TIMEOUT)
    except asyncio.CancelledError:
        if not running.done():
            text = "task %s: its job is not dead %.0f s after its caller was cancelled, which waits no longer"
            logging.getLogger("executor_adapter.prefect").warning(text, job_run.task.name, INTERRUPT_TIMEOUT)
            job_run.close()
        raise


async def result_of(future: Future[T], interrupt: Callable[[BaseException], object], patience: float = math.inf) -> T:
    """Return the result of `future` once it is done, or raise its error.

    When the caller is cancelled, `interrupt(error)` is called, which ends what the future stands for. That is then
    waited for, at most `patience` seconds, however often the caller is cancelled meanwhile.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def notify(_: Future[T]) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed, so no caller waits any more.
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(notify)
    try:
        await done.wait()
    except BaseException as error:
        interrupt(error)
        if isinstance(error, asyncio.CancelledError):
            await _wait_for(done, patience)
        raise
    return future.result()


async def _wait_for(done: asyncio.Event, patience: float) -> None:
    """Wait for the event, at most `patience` seconds, even if the caller is cancelled again."""
    until = time.monotonic() + patience
    while not done.is_set() and (left := until - time.monotonic()) > 0:
        # A scope of anyio that is cancelled cancels at each turn of the loop, but not what is shielded.
        with contextlib.suppress(asyncio.CancelledError), anyio.move_on_after(left, shield=True):
            await done.wait()
