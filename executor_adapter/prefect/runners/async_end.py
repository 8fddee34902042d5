"""Waits for the Prefect server at the end of an async flow without blocking its event loop.

Prefect leaves a flow's task runner by `__exit__`, which cannot await anything. What an async flow awaits last is the
end of its client, so the wait goes there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

from prefect.context import AsyncClientContext


def await_at_flow_end(wait: Callable[[], object], give_up: Callable[[], object]) -> bool:
    """Call `wait()` on a thread, and let the flow around the caller await it at its end; `give_up()` makes it return.

    Returns False, and calls nothing, if the caller is in no event loop that has a client of Prefect.
    """
    context = AsyncClientContext.get()
    if context is None or context.client.loop is not _running_loop():
        return False
    waited: Future[None] = Future()

    def run() -> None:
        try:
            wait()
            waited.set_result(None)
        except BaseException as error:
            waited.set_exception(error)

    leave = context.client.__aexit__

    async def leave_later(*exc_info: Any) -> bool | None:
        kind = exc_info[0] if exc_info else None
        try:
            if kind is not None and not issubclass(kind, Exception):
                give_up()
            await asyncio.shield(asyncio.wrap_future(waited))
        except BaseException:
            give_up()
            raise
        finally:
            left = await leave(*exc_info)
        return left

    context.client.__aexit__ = leave_later  # type: ignore[method-assign]
    # Not a daemon thread: the interpreter must not exit before the server had its time.
    threading.Thread(target=copy_context().run, args=(run,), name="flow-end").start()
    return True


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
