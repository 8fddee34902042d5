"""Passes items from the supervisor's thread, which must not wait, to a thread that can: for requests, for example."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Generic, TypeVar

logger = logging.getLogger("executor_adapter.prefect")

Item = TypeVar("Item")


class BatchingThread(Generic[Item]):
    """Calls `consume(items)` on a thread with the items put since the last call, at most once in `interval` seconds.

    Any thread may call `put`, which returns at once. The thread sleeps while there are no items, and runs in the
    context in which this was made. Exceptions of `consume` are logged.
    """

    def __init__(self, consume: Callable[[list[Item]], object], interval: float) -> None:
        self._consume = consume
        self._interval = interval
        self._items: deque[Item] = deque()
        self._has_items = threading.Event()
        self._closed = threading.Event()
        context: Any = copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="job-batches", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Add an item to the next batch."""
        self._items.append(item)
        if not self._has_items.is_set():
            self._has_items.set()

    def close(self, timeout: float = 10.0) -> None:
        """Consume the remaining items, and wait for that, at most `timeout` seconds."""
        self._closed.set()
        self._has_items.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        consumed_at = 0.0
        while self._items or not self._closed.is_set():
            self._has_items.wait()
            self._closed.wait(max(0.0, consumed_at + self._interval - time.monotonic()))
            self._has_items.clear()
            if self._closed.is_set():
                self._has_items.set()
            consumed_at = time.monotonic()
            self._consume_all()

    def _consume_all(self) -> None:
        items = [self._items.popleft() for _ in range(len(self._items))]
        if not items:
            return
        try:
            self._consume(items)
        except Exception as error:
            logger.warning("cannot send %d job updates to Prefect: %r", len(items), error)
