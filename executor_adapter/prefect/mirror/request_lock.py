"""Releases a lock while its holder waits for the server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class RequestLock:
    """Makes requests with `lock` released. The caller holds it before and after each one.

    So other threads can read, and take over, what is in flight while the server answers.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __call__(self, request: Callable[..., Any], *args: Any) -> Any:
        """Return `request(*args)`, called without the lock."""
        self._lock.release()
        try:
            return request(*args)
        finally:
            self._lock.acquire()
