"""Asks the store for this executor's shares of tools, on the recorder's thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from executor_adapter.store import Host, JobStore, SharedTools, StoreUnavailableError, ToolAsk, ToolShare
from executor_adapter.supervision import Supervisor, ToolRequest

logger = logging.getLogger("executor_adapter.store")


class ToolRequests:
    """Passes what the rate limiter asks for to the recorder, and the answers back.

    The rate limiter asks one thing at a time. While the store is down, or cannot say what holds, the request
    waits.
    """

    def __init__(self, store: JobStore, supervisor: Supervisor) -> None:
        self._store = store
        self._supervisor = supervisor
        self.request: ToolRequest | None = None
        """What the rate limiter asks for; the supervisor's thread sets it."""
        self._is_failing = False
        self._losses = 0
        self._tried_at = 0.0

    def to_write(self, host: Callable[[], Host]) -> Sequence[ToolAsk]:
        """Return what has to be written; answer a request that changes nothing in the store from a look at it.

        Hosts that wait ask often, and mostly nothing changes: the look needs no lock.
        """
        request = self.request
        if request is None or request.losses != self._losses:
            return ()
        self._tried_at = self._supervisor.now()
        if request.is_news:
            return request.asks
        me = host().host_id
        try:
            tools = self._store.tools()
            if tools.any_gone or any(tools.is_changed_by(ask, me) for ask in request.asks):
                return request.asks
            self.answer({ask.tool_name: tools.share(ask, me) for ask in request.asks}, tools)
        except StoreUnavailableError:
            raise
        except Exception:
            self.on_failure()
        return ()

    def answer(self, shares: Mapping[str, ToolShare], tools: SharedTools) -> None:
        """Answer the request."""
        self.request, self._is_failing = None, False
        self._supervisor.call_soon(self._supervisor.dispatcher.rate_limiter.on_answer, shares, tools, self._tried_at)

    def on_failure(self) -> None:
        """Log the present exception, if it is the first one since the last answer."""
        if not self._is_failing:
            logger.exception("the store does not say what tools may start: jobs with a tool_name wait for it")
        self._is_failing = True

    def on_outage(self) -> None:
        """Note that the store is down."""
        self._supervisor.call_soon(self._supervisor.dispatcher.rate_limiter.on_outage)

    def on_lease_lost(self) -> None:
        """Note that the shares are lost with the lease."""
        self._losses += 1
        self._supervisor.call_soon(self._supervisor.dispatcher.rate_limiter.on_lease_lost)
