"""Waits for an executor's futures, in an event loop, which is not blocked; and the slot of a job that waits."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executor_adapter.supervision.driver import JobDriver


async def over(future: Future[Any]) -> None:
    """Wait until `future` is done, however. Cancelling the wait does not cancel it: it is the executor's."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(tell)
    await done.wait()


async def result_of(future: Future[Any]) -> Any:
    """What `future` gives, once it is done; raises its error."""
    await over(future)
    return future.result()


class SlotLoan:
    """The slot of one attempt, which others may have while anything in the attempt waits for them. For any thread."""

    def __init__(self, driver: JobDriver) -> None:
        self._driver = driver
        self._waits = 0
        self._over = False
        self._lent: AbstractContextManager[None] | None = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """One more wait begins. With the first the slot is lent."""
        with self._lock:
            self._waits += 1
            if self._waits == 1 and not self._over:
                self._lent = self._driver.waiting()
                self._lent.__enter__()

    def end(self) -> None:
        """One is over. With the last the attempt has its slot again."""
        with self._lock:
            self._waits -= 1
            if not self._waits:
                self._take_back()

    def close(self) -> None:
        """The attempt is over: what still waits is not to take back the slot of the next."""
        with self._lock:
            self._over = True
            self._take_back()

    def _take_back(self) -> None:
        lent, self._lent = self._lent, None
        if lent is not None:
            lent.__exit__(None, None, None)


slot_loan: contextvars.ContextVar[SlotLoan | None] = contextvars.ContextVar("slot_loan", default=None)
"""That of the attempt whose function the caller is in, in a pool of this process."""


@contextlib.contextmanager
def slot_lent() -> Iterator[None]:
    """While it lasts, the job around the caller, if there is one, waits for others."""
    loan = slot_loan.get()
    if loan is None:
        yield
        return
    loan.begin()
    try:
        yield
    finally:
        loan.end()
