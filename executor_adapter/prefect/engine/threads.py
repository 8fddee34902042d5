"""Runs what blocks on a thread of its own, and waits for it in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import anyio

from executor_adapter.pools import current_slot_loan

T = TypeVar("T")


def run_in_thread(function: Callable[[], T], name: str = "task-engine") -> Future[T]:
    """Call `function` on a new thread, in the caller's context; the future gives what it returns."""
    threads = ThreadPoolExecutor(1, thread_name_prefix=name)
    future = threads.submit(context_of_engine().run, function)
    threads.shutdown(wait=False)
    return future


def context_of_engine() -> contextvars.Context:
    """Return a copy of the caller's context for an engine: one that waits for its inputs is not a job that waits."""
    context = contextvars.copy_context()
    context.run(current_slot_loan.set, None)
    return context


async def result_of(future: Future[T], on_cancel: Callable[[BaseException], object], patience: float, name: str) -> T:
    """Return the result of `future` once it is done, or raise its error.

    When the caller is cancelled, `on_cancel(error)` is called, which must end what the future stands for. That is then
    waited for, at most `patience` seconds, however often the caller is cancelled meanwhile. `name` is that of the task
    in the log, which says if the wait was in vain.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def notify(_: Future[T]) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed, so no caller waits any more.
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(notify)
    try:
        await done.wait()
    except BaseException as error:
        on_cancel(error)
        if isinstance(error, asyncio.CancelledError) and not await _is_done_within(done, patience):
            text = "task %s: its job is not dead %.0f s after its caller was cancelled, which waits no longer"
            logging.getLogger("executor_adapter.prefect").warning(text, name, patience)
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
