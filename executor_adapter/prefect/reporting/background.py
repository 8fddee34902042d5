"""Makes calls on another thread, for the supervisor's, which must not wait: requests, for example."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue

logger = logging.getLogger("executor_adapter.prefect")

Call = Callable[[], object]

WAIT_TIMEOUT = 10.0
"""Seconds to wait for calls that were put."""


class BackgroundCalls:
    """Makes calls one after another on a thread of its own, in the context in which this was made.

    Any thread may call `put`, which returns at once. Exceptions of a call are logged. The thread ends with this object.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._context = copy_context()
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._is_started = False
        self._lock = threading.Lock()
        weakref.finalize(self, self._calls.put, None)

    def put(self, call: Call) -> None:
        """Make the call when those before it are made."""
        self._calls.put(call)
        # Where the system starts no thread now, the next call tries again.
        with self._lock, contextlib.suppress(RuntimeError):
            if not self._is_started:
                arguments = _make, self._calls
                threading.Thread(target=self._context.run, args=arguments, name=self._name, daemon=True).start()
                self._is_started = True

    def wait(self) -> None:
        """Wait until the calls so far are made, at most WAIT_TIMEOUT."""
        is_made = threading.Event()
        self.put(is_made.set)
        if not (self._is_started and is_made.wait(WAIT_TIMEOUT)):
            logger.warning("not all of the %s reached Prefect", self._name)


def _make(calls: SimpleQueue[Call | None]) -> None:
    while (call := calls.get()) is not None:
        try:
            call()
        except Exception as error:
            logger.warning("cannot tell Prefect of a job: %r", error)
        del call  # It may hold what puts the calls.
