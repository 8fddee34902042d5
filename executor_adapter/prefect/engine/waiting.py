"""Waits for the executor's futures without blocking an event loop, and lends the slot of a job that waits."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

import anyio


async def wait_until_done(future: Future[Any]) -> None:
    """Wait until `future` is done, however it ends.

    Cancelling this wait does not cancel the future, which belongs to the executor.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def notify(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed, so no caller waits any more.
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(notify)
    await done.wait()


async def await_result(future: Future[Any]) -> Any:
    """Return the result of `future` once it is done, or raise its error."""
    await wait_until_done(future)
    return future.result()


async def is_done_within(future: Future[Any], seconds: float, *, shield: bool = False) -> bool:
    """Wait at most `seconds` for `future`; return whether it is done.

    `shield`: the scopes of anyio do not end the wait. `Task.cancel()` does.
    """
    with anyio.move_on_after(seconds, shield=shield):
        await wait_until_done(future)
    return future.done()


class SlotLoan:
    """Lends the slot of one attempt to other jobs while anything in the attempt waits for them. Thread-safe.

    `lend` makes a context manager: the slot is free within it.
    """

    def __init__(self, lend: Callable[[], AbstractContextManager[None]]) -> None:
        self._lend = lend
        self._waits = 0
        self._is_closed = False
        self._lent: AbstractContextManager[None] | None = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Count one more wait; the first one lends the slot."""
        with self._lock:
            self._waits += 1
            if self._waits == 1 and not self._is_closed:
                self._lent = self._lend()
                self._lent.__enter__()

    def end(self) -> None:
        """Count one wait less; after the last one the attempt has its slot again."""
        with self._lock:
            self._waits -= 1
            if not self._waits:
                self._take_back()

    def close(self) -> None:
        """End the loan with the attempt: waits that remain must not take the slot of the next attempt."""
        with self._lock:
            self._is_closed = True
            self._take_back()

    def _take_back(self) -> None:
        lent, self._lent = self._lent, None
        if lent is not None:
            lent.__exit__(None, None, None)


current_slot_loan: contextvars.ContextVar[SlotLoan | None] = contextvars.ContextVar("current_slot_loan", default=None)
"""The loan of the attempt whose function is the caller, in a pool of this process."""


@contextlib.contextmanager
def lend_slot() -> Iterator[None]:
    """Lend the slot of the job around the caller, if there is one, while the block waits for other jobs."""
    loan = current_slot_loan.get()
    if loan is None:
        yield
        return
    loan.begin()
    try:
        yield
    finally:
        loan.end()
