"""Waits for the executor's futures without blocking an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Future
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
