"""The functions that an agent has been sent."""

from __future__ import annotations

from executor_adapter.pools.cluster import frames
from executor_adapter.pools.transport.functions import EncodedFunction
from executor_adapter.worker import wire

MAX_FUNCTIONS = 4096
"""Functions that an agent keeps. When it has so many, it forgets all, and is sent again what it needs."""


class SentFunctions:
    """Knows which functions an agent has, so that each is sent once."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def frame(self, function: EncodedFunction, *, may_forget: bool) -> bytes:
        """Return the frame that must precede a call of `function`; empty if the agent has the function.

        `may_forget`: no call is still to be sent that refers to a function which the agent has.
        """
        if function.number in self._known:
            return b""
        flags = wire.USE_ONCE if function.once else 0
        if len(self._known) >= MAX_FUNCTIONS and may_forget:
            self._known.clear()
            flags |= wire.FORGET_OTHERS
        if not function.once:
            self._known.add(function.number)
        if function.portable:
            flags |= frames.PORTABLE
        return wire.pack_frame(wire.FUNCTION, flags, word=function.number, body=function.portable or function.encoded)
