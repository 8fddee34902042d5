"""The lease of this executor on its store: while it holds it, other hosts leave its jobs alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from executor_adapter.store import Host, JobStore, StoreUnavailableError, close_host, new_host
from executor_adapter.worker import lease_time

LEASE_SECONDS = 60.0
"""Seconds without a renewal after which a host on another machine counts as dead."""

RENEWAL_SHARE = 1 / 4
"""Share of the lease after which it is renewed."""

_ANNOUNCED_SHARE = 11 / 12
"""Share of the lease after which guardians end the jobs of a host that is stopped. It is more than GIVE_UP_SHARE, since
a host that runs ends its jobs itself."""
_ANNOUNCE_STEP = 1 / 24
"""Share of the lease by which it must have been extended to be announced again."""

GIVE_UP_SHARE = 5 / 6
"""Share of the lease after which this host stops its jobs: what is left of it is the time to end them."""


class HostLease:
    """Registers this executor as a host of the store and knows when its lease is due for renewal.

    It does not renew the lease itself: each write to the store does. For the recorder's thread alone.

    Args:
        store: the store.
        seconds: the length of the lease.
        announce: called with the `lease_time` by which jobs must have ended in any case; None for no such time.
    """

    now = staticmethod(lease_time)
    """The clock of leases."""

    def __init__(
        self,
        store: JobStore,
        seconds: float = LEASE_SECONDS,
        announce: Callable[[float | None], object] = lambda _: None,
    ) -> None:
        self.seconds = seconds
        self._store = store
        self._host: Host | None = None
        self.renewed_at = 0.0
        self._announce = announce
        self._announced: float | None = None

    def host(self) -> Host:
        """Return this executor as a host; the first call registers it.

        Raises:
            StoreUnavailableError: it cannot be registered now.
        """
        if self._host is None:
            began = lease_time()
            host = new_host()
            try:
                self._store.register(host, lease=self.seconds)
            except BaseException:
                close_host(host)
                raise
            self._host, self.renewed_at = host, began
        return self._host

    @property
    def is_registered(self) -> bool:
        """Whether this executor is a host of the store."""
        return self._host is not None

    @property
    def due_at(self) -> float:
        """The monotonic time from which the lease is to be renewed."""
        return time.monotonic() + self.renewed_at + self.seconds * RENEWAL_SHARE - lease_time()

    @property
    def is_due(self) -> bool:
        """Whether the lease is to be renewed."""
        return time.monotonic() >= self.due_at

    def renewed(self, at: float) -> None:
        """Note that a write which began at the `lease_time` `at` has renewed the lease."""
        self.renewed_at = at

    def is_about_to_expire(self) -> bool:
        """Return whether other hosts may soon take this host for dead, although it is alive.

        Hosts of the same machine see that it lives. Others, in other containers too, see nothing but its lease.
        """
        if self._host is None or not self._store.durable:
            return False
        return lease_time() > self.renewed_at + self.seconds * GIVE_UP_SHARE

    def announce(self, *, is_needed: bool) -> None:
        """Announce until when jobs may run. `is_needed`: whether there are any."""
        expires = self._host is not None and self._store.durable
        if not is_needed or not expires or self.is_about_to_expire():
            until = None
        else:
            until = self.renewed_at + self.seconds * _ANNOUNCED_SHARE
        before = self._announced
        if until is None or before is None:
            is_news = until is not before
        else:
            is_news = until - before >= self.seconds * _ANNOUNCE_STEP
        if is_news:
            self._announced = until
            self._announce(until)

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
