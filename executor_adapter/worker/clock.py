"""The clock of leases. The guardian imports this module, so it needs the standard library alone."""

from __future__ import annotations

import time

_BOOT_TIME = getattr(time, "CLOCK_BOOTTIME", None)


def lease_time() -> float:
    """Return seconds on a clock that all processes of the machine share.

    On Linux it counts while the machine is suspended, as the clock of a database on another machine does.
    """
    return time.monotonic() if _BOOT_TIME is None else time.clock_gettime(_BOOT_TIME)
