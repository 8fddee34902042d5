"""Waits for the Prefect server at the end of an async flow without blocking its event loop.

Prefect leaves a flow's task runner by `__exit__`, which cannot await anything. What an async flow awaits last is the
end of its client, so the wait goes there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.context import AsyncClientContext

from executor_adapter.prefect.engine.threads import run_in_thread


def await_at_flow_end(wait: Callable[[], object], give_up: Callable[[], object]) -> bool:
    """Call `wait()` on a thread, and let the flow around the caller await it at its end; `give_up()` makes it return.

    Returns False, and calls nothing, if the caller is in no event loop that has a client of Prefect, or has no thread.
    """
    context = AsyncClientContext.get()
    with contextlib.suppress(RuntimeError):  # The caller is in no event loop, or the system cannot start a thread.
        if context is not None and context.client.loop is asyncio.get_running_loop():
            client: Any = context.client
            if not isinstance(client.__aexit__, _AwaitedEnd):
                client.__aexit__ = _AwaitedEnd(client)
            client.__aexit__.add(wait, give_up)
            return True
    return False


class _AwaitedEnd:
    """Replaces `__aexit__` of a client. That of a flow with subflows awaits theirs too, and there can be thousands."""

    def __init__(self, client: PrefectClient) -> None:
        self._leave = client.__aexit__
        self._waits: dict[Future[object], Callable[[], object]] = {}
        """What is awaited, with what makes it return."""

    def add(self, wait: Callable[[], object], give_up: Callable[[], object]) -> None:
        """Call `wait()` on a thread, and await it."""
        # Not a daemon thread: the interpreter must not exit before the server had its time.
        waiting = run_in_thread(wait, "flow-end", daemon=False)
        self._waits[waiting] = give_up
        waiting.add_done_callback(self._forget)

    def _forget(self, waiting: Future[object]) -> None:
        if waiting.exception() is None:
            del self._waits[waiting]

    async def __call__(self, kind: type[BaseException] | None = None, *details: Any) -> Any:
        awaited = dict(self._waits)
        try:
            if kind is not None and not issubclass(kind, Exception):
                for give_up in awaited.values():
                    give_up()
            waits = asyncio.gather(*map(asyncio.wrap_future, awaited), return_exceptions=True)
            for error in await asyncio.shield(waits):
                if isinstance(error, BaseException):
                    raise error
        except BaseException:
            for give_up in awaited.values():
                give_up()
            raise
        finally:
            left = await self._leave(kind, *details)
        return left
