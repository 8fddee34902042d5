"""Runs what blocks on a thread of its own, and waits for it in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import anyio

from executor_adapter.pools import current_slot_loan
from executor_adapter.prefect.engine.job_run import JobRun

T = TypeVar("T")


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


async def result_of(future: Future[T], job_run: JobRun, patience: float) -> T:
    """Return the result of `future` once it is done, or raise its error.

    When the caller is cancelled, `job_run`, which the future stands for, is interrupted. Its end is then waited for, at
    most `patience` seconds, however often the caller is cancelled meanwhile. If the wait was in vain, the log says so,
    and the executor does not wait for the job either: its engine may wait for something else.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def notify(_: Future[T]) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed, so no caller waits any more.
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(notify)
    try:
        await done.wait()
    except BaseException as error:
        job_run.interrupt(error)
        if isinstance(error, asyncio.CancelledError) and not await _is_done_within(done, patience):
            text = "task %s: its job is not dead %.0f s after its caller was cancelled, which waits no longer"
            logging.getLogger("executor_adapter.prefect").warning(text, job_run.task.name, patience)
            job_run.close()
        raise
    return future.result()


async def _is_done_within(done: asyncio.Event, patience: float) -> bool:
    """Return whether the event comes within `patience` seconds; waits for it even if the caller is cancelled again."""
    until = time.monotonic() + patience
    while not done.is_set() and (left := until - time.monotonic()) > 0:
        # A scope of anyio that is cancelled cancels at each turn of the loop, but not what is shielded.
        with contextlib.suppress(asyncio.CancelledError), anyio.move_on_after(left, shield=True):
            await done.wait()
    return done.is_set()
