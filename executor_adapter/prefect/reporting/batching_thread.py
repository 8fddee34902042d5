"""Passes items from the supervisor's thread, which must not wait, to a thread that can: for requests, for example."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Generic, TypeVar

logger = logging.getLogger("executor_adapter.prefect")

Item = TypeVar("Item")


class BatchingThread(Generic[Item]):
    """Calls `consume(items)` on a thread with the items put since the last call, at most once in `interval` seconds.

    Any thread may call `put`, which returns at once. The thread lives while there are items, and runs in the context in
    which this was made. Exceptions of `consume` are logged.
    """

    def __init__(self, consume: Callable[[list[Item]], object], interval: float) -> None:
        self._consume = consume
        self._interval = interval
        self._items: deque[Item] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._consumed_at = 0.0
        self._context = copy_context()

    def put(self, item: Item) -> None:
        """Add an item to the next batch."""
        with self._lock:
            self._items.append(item)
            if self._thread is None:
                run = self._context.copy().run
                thread = threading.Thread(target=run, args=(self._run,), name="job-batches", daemon=True)
                with contextlib.suppress(RuntimeError):  # The system starts none now: the next item tries again.
                    thread.start()
                    self._thread = thread

    def close(self, timeout: float = 10.0) -> None:
        """Consume the remaining items at once, and later ones too, and wait for that, at most `timeout` seconds."""
        self._closed.set()
        with self._lock:
            thread, left = self._thread, len(self._items)
        if thread is not None:
            thread.join(timeout)
        elif left:
            logger.warning("%d job updates are not sent to Prefect: the system starts no thread", left)

    def _run(self) -> None:
        while items := self._next_batch():
            self._consumed_at = time.monotonic()
            try:
                self._consume(items)
            except Exception as error:
                logger.warning("cannot send %d job updates to Prefect: %r", len(items), error)

    def _next_batch(self) -> list[Item]:
        """Return the items of the next batch when it is due; without one, the thread ends."""
        self._closed.wait(max(0.0, self._consumed_at + self._interval - time.monotonic()))
        with self._lock:
            items = list(self._items)
            self._items.clear()
            if not items:
                self._thread = None
        return items
