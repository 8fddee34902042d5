"""Makes calls on another thread, for the supervisor's, which must not wait: requests, for example."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context

logger = logging.getLogger("executor_adapter.prefect")

IDLE_SECONDS = 1.0
"""Seconds without a call after which the thread ends."""

WAIT_TIMEOUT = 10.0
"""Seconds to wait for the calls so far."""


class BackgroundCalls:
    """Makes calls one after another on a thread of its own, in the context in which this was made.

    Any thread may call `put`, which returns at once. The thread ends when no calls come. Exceptions of one are logged.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._context = copy_context()
        self._calls: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._is_running = False

    def put(self, call: Callable[[], object]) -> None:
        """Make the call when those before it are made."""
        # Where the system starts no thread now, the next call tries again, and `wait` makes the calls itself.
        with self._changed, contextlib.suppress(RuntimeError):
            self._calls.append(call)
            self._changed.notify()
            if not self._is_running:
                run = self._context.copy().run
                threading.Thread(target=run, args=(self._run,), name=self._name, daemon=True).start()
                self._is_running = True

    def wait(self) -> None:
        """Wait until the calls so far are made, at most WAIT_TIMEOUT."""
        is_made = threading.Event()
        self.put(is_made.set)
        if not self._is_running:
            self._context.copy().run(self._run)
        if not is_made.wait(WAIT_TIMEOUT):
            logger.warning("not all of the %s reached Prefect", self._name)

    def _run(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except Exception as error:
                logger.warning("cannot tell Prefect of a job: %r", error)

    def _next(self) -> Callable[[], object] | None:
        """Return the next call; without one for a while, the thread ends."""
        with self._changed:
            self._is_running = self._changed.wait_for(lambda: bool(self._calls), IDLE_SECONDS)
            return self._calls.popleft() if self._is_running else None
