"""Outages: how long the store has been unavailable, and how long to wait before the next try."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("executor_adapter.store")

MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.1, 5.0
"""Seconds between tries while the store cannot be written; the delay doubles with each."""


class Outage:
    """Tracks whether the store can be written, and logs each outage once at its beginning and once at its end."""

    def __init__(self, store_url: str) -> None:
        self.retry_delay = MIN_RETRY_DELAY
        """Seconds to wait before the next try."""
        self._url = store_url
        self._since: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether the store could not be written when that was last tried."""
        return self._since is not None

    def failed(self, error: Exception, began: float) -> None:
        """Note that a write that began at the monotonic time `began` failed."""
        if self._since is None:
            self._since = began
            logger.error(
                "%s cannot be written: %s: jobs continue, and their changes are kept in memory until it can",
                self._url,
                error,
            )
        self.retry_delay = min(2 * self.retry_delay, MAX_RETRY_DELAY)

    def succeeded(self) -> None:
        """Note that a write succeeded."""
        if self._since is not None:
            seconds = time.monotonic() - self._since
            logger.warning("%s can be written again after %.1f s: nothing was lost", self._url, seconds)
            self._since, self.retry_delay = None, MIN_RETRY_DELAY
