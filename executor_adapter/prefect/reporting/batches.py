"""Takes what the supervisor's thread tells to a thread that has time for it: requests to the server, for example."""

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


class Batches(Generic[Item]):
    """Has `take(items)` called with what was put since, at most once in `every` seconds, in the maker's context.

    `put` returns at once, and may be called from any thread. The thread sleeps while nothing is put. What `take` raises
    is logged: it must not end whoever puts.
    """

    def __init__(self, take: Callable[[list[Item]], object], every: float) -> None:
        self._take = take
        self._every = every
        self._items: deque[Item] = deque()
        self._something = threading.Event()
        self._closed = threading.Event()
        context: Any = copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="job-batches", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        self._items.append(item)
        if not self._something.is_set():
            self._something.set()

    def close(self, timeout: float = 10.0) -> None:
        """Have what is left taken, and return when it was, after `timeout` seconds at the latest."""
        self._closed.set()
        self._something.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        taken_at = 0.0
        while self._items or not self._closed.is_set():
            self._something.wait()
            self._closed.wait(max(0.0, taken_at + self._every - time.monotonic()))
            self._something.clear()
            if self._closed.is_set():
                self._something.set()
            taken_at = time.monotonic()
            self._take_all()

    def _take_all(self) -> None:
        items = [self._items.popleft() for _ in range(len(self._items))]
        if not items:
            return
        try:
            self._take(items)
        except Exception as error:
            logger.warning("Prefect could not be told of %d jobs: %r", len(items), error)
