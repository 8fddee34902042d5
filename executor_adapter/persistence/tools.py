"""Asks the store for this executor's shares of tools, on the recorder's thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from executor_adapter.store import Host, JobStore, SharedTools, ToolAsk, ToolShare
from executor_adapter.supervision import Supervisor, ToolRequest


class ToolRequests:
    """Passes what the rate limiter asks for to the recorder, and the answers back.

    The rate limiter asks one thing at a time. While the store is down the request waits.
    """

    def __init__(self, store: JobStore, supervisor: Supervisor) -> None:
        self._store = store
        self._limiter = supervisor.dispatcher.rate_limiter
        self._now = supervisor.now
        self._call_soon = supervisor.call_soon
        self._request: ToolRequest | None = None
        self._losses = 0
        self._tried_at = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether there is a request."""
        return self._request is not None

    def receive(self, request: ToolRequest) -> None:
        """Receive a request, on the supervisor's thread."""
        self._request = request

    # --- on the recorder's thread ---

    def to_write(self, host: Callable[[], Host]) -> Sequence[ToolAsk]:
        """Return what has to be written; answer a request that changes nothing in the store from a look at it.

        Hosts that wait ask often, and mostly nothing changes: the look needs no lock.
        """
        request = self._request
        if request is None or request.losses != self._losses:
            return ()
        self._tried_at = self._now()
        if request.is_news:
            return request.asks
        tools, me = self._store.tools(), host().host_id
        if tools.any_gone or any(tools.is_changed_by(ask, me) for ask in request.asks):
            return request.asks
        self.answer({ask.tool_name: tools.share(ask, me) for ask in request.asks}, tools)
        return ()

    def answer(self, shares: Mapping[str, ToolShare], tools: SharedTools) -> None:
        """Answer the request."""
        self._request = None
        self._call_soon(self._limiter.on_answer, shares, tools, self._tried_at)

    def on_outage(self) -> None:
        """Note that the store is down."""
        self._call_soon(self._limiter.on_outage)

    def on_lease_lost(self) -> None:
        """Note that the shares are lost with the lease."""
        self._losses += 1
        self._call_soon(self._limiter.on_lease_lost)
