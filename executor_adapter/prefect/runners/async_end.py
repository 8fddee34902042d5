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
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from prefect.client.orchestration import PrefectClient
from prefect.context import AsyncClientContext


class _FlowEnd(NamedTuple):
    """The end of one flow run that its client awaits."""

    waited: Future[None]
    give_up: Callable[[], object]


_ends: WeakKeyDictionary[PrefectClient, set[_FlowEnd]] = WeakKeyDictionary()
"""What each client awaits. One of a flow with subflows awaits theirs too, and there can be thousands."""


def await_at_flow_end(wait: Callable[[], object], give_up: Callable[[], object]) -> bool:
    """Call `wait()` on a thread, and let the flow around the caller await it at its end; `give_up()` makes it return.

    Returns False, and calls nothing, if the caller is in no event loop that has a client of Prefect.
    """
    context = AsyncClientContext.get()
    if context is None or context.client.loop is not _running_loop():
        return False
    ends = _ends.get(context.client)
    if ends is None:
        ends = _ends[context.client] = set()
        _await_before_leaving(context.client, ends)
    end = _FlowEnd(Future(), give_up)
    ends.add(end)

    def run() -> None:
        try:
            wait()
            end.waited.set_result(None)
            ends.discard(end)
        except BaseException as error:
            end.waited.set_exception(error)

    # Not a daemon thread: the interpreter must not exit before the server had its time.
    threading.Thread(target=copy_context().run, args=(run,), name="flow-end").start()
    return True


def _await_before_leaving(client: PrefectClient, ends: set[_FlowEnd]) -> None:
    leave = client.__aexit__

    async def leave_later(*exc_info: Any) -> bool | None:
        kind = exc_info[0] if exc_info else None
        awaited = list(ends)
        try:
            if kind is not None and not issubclass(kind, Exception):
                _give_up(awaited)
            waits = asyncio.gather(*(asyncio.wrap_future(end.waited) for end in awaited), return_exceptions=True)
            for error in filter(None, await asyncio.shield(waits)):
                raise error
        except BaseException:
            _give_up(awaited)
            raise
        finally:
            left = await leave(*exc_info)
        return left

    client.__aexit__ = leave_later  # type: ignore[method-assign]


def _give_up(ends: list[_FlowEnd]) -> None:
    for end in ends:
        end.give_up()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
