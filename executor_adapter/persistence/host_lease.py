"""The lease of this executor on its store: while it holds it, other hosts leave its jobs alone."""

from __future__ import annotations

import contextlib
import time

from executor_adapter.store import Host, JobStore, StoreUnavailableError, close_host, new_host

LEASE_SECONDS = 60.0
"""Seconds without a renewal after which a host on another machine counts as dead."""

RENEWAL_SHARE = 1 / 4
"""Share of the lease after which it is renewed."""

GIVE_UP_SHARE = 5 / 6
"""Share of the lease after which this host stops its jobs: what is left of it is the time to end them."""


class HostLease:
    """Registers this executor as a host of the store and knows when its lease is due for renewal.

    It does not renew the lease itself: each write to the store does. For the recorder's thread alone.

    Args:
        store: the store.
        seconds: the length of the lease.
    """

    def __init__(self, store: JobStore, seconds: float = LEASE_SECONDS) -> None:
        self.seconds = seconds
        self._store = store
        self._host: Host | None = None
        self._renewed_at = 0.0

    def host(self) -> Host:
        """Return this executor as a host; the first call registers it.

        Raises:
            StoreUnavailableError: it cannot be registered now.
        """
        if self._host is None:
            began = time.monotonic()
            host = new_host()
            try:
                self._store.register(host, lease=self.seconds)
            except BaseException:
                close_host(host)
                raise
            self._host, self._renewed_at = host, began
        return self._host

    @property
    def is_registered(self) -> bool:
        """Whether this executor is a host of the store."""
        return self._host is not None

    @property
    def due_at(self) -> float:
        """The monotonic time from which the lease is to be renewed."""
        return self._renewed_at + self.seconds * RENEWAL_SHARE

    def renewed(self, at: float) -> None:
        """Note that a write which began at the monotonic time `at` has renewed the lease."""
        self._renewed_at = at

    def is_about_to_expire(self) -> bool:
        """Return whether other hosts may soon take this host for dead, although it is alive.

        On one machine, a host with a presence counts as alive as long as its process is, however old its lease.
        """
        if self._host is None or not (self._store.shared or not self._host.presence):
            return False
        return time.monotonic() > self._renewed_at + self.seconds * GIVE_UP_SHARE

    def lose(self) -> None:
        """Note that another host has taken the lease; the next `host` registers a new one."""
        if self._host is not None:
            close_host(self._host)
            self._host = None

    def end(self) -> None:
        """End the lease, so that other hosts may take over at once what is left."""
        if self._host is not None:
            close_host(self._host)
            with contextlib.suppress(StoreUnavailableError):
                self._store.leave(self._host.host_id)
