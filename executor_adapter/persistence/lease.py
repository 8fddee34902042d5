"""The lease of this executor on its store: when it is renewed, and when it ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sized

from executor_adapter.worker.wire import lease_time

RENEWAL_SHARE = 1 / 4
"""Share of the lease after which it is renewed."""
LOOK_SHARE = 1 / 12
"""Share of the lease between two looks at it. One that is late by more tells that this process itself was stopped."""
GIVE_UP_SHARE = 5 / 6
"""Share of the lease after which this host stops its jobs: what is left of it is the time to end them."""
_ANNOUNCED_SHARE = 11 / 12
"""Share of the lease after which guardians end the jobs of a host that is stopped. It is more than GIVE_UP_SHARE, since
a host that runs ends its jobs itself."""
_ANNOUNCE_STEP = 1 / 24
"""Share of the lease by which it must have been extended to be announced again."""


class Lease:
    """Knows when a lease is due for renewal, and when it is about to expire. Each write to the store renews it.

    Args:
        seconds: its length.
        jobs: the live jobs that other hosts may take once it is over.
        announce: called with the `lease_time` by which jobs must have ended in any case; infinite for no such time.
    """

    def __init__(self, seconds: float, jobs: Sized, announce: Callable[[float], object]) -> None:
        self.seconds = seconds
        self._renewed_at: float | None = None
        """The `lease_time` at which it was last renewed; None: there is none."""
        self._jobs = jobs
        self._announce = announce
        self._announced = math.inf

    def renew(self, at: float | None) -> None:
        """Note that a write which began at the `lease_time` `at` has renewed it; None: another host has taken it."""
        self._renewed_at = at
        self.announce()

    @property
    def due_at(self) -> float:
        """The monotonic time from which the lease is to be renewed."""
        return time.monotonic() + (self._renewed_at or 0.0) + self.seconds * RENEWAL_SHARE - lease_time()

    @property
    def age(self) -> float:
        """Seconds since it was renewed."""
        return 0.0 if self._renewed_at is None else lease_time() - self._renewed_at

    @property
    def seconds_left(self) -> float:
        """Seconds until this host stops its jobs, since others may soon take it for dead, although it is alive.

        Hosts of the same machine see that it lives. Others, in other containers too, see nothing but its lease.
        """
        return self.seconds * GIVE_UP_SHARE - self.age

    def announce(self) -> None:
        """Announce until when jobs may run, if that has changed: it was renewed, or the first job has come."""
        until = math.inf
        if self._jobs and self._renewed_at is not None and self.seconds_left > 0:
            until = self._renewed_at + self.seconds * _ANNOUNCED_SHARE
        if until < self._announced or until - self._announced >= self.seconds * _ANNOUNCE_STEP:
            self._announced = until
            self._announce(until)
