"""The reasons for which a running attempt is ended."""

from __future__ import annotations

import enum


class StopReason(enum.IntEnum):
    """Names why an attempt is ended. A later reason outweighs an earlier one.

    A user who cancels a job that is past its limit does not want it retried.
    """

    QUEUE_TIMEOUT = enum.auto()
    """Not begun within queue_timeout: it counts only as long as the attempt has not begun."""
    LIMIT = enum.auto()
    """Past max_runtime."""
    STALL = enum.auto()
    """No progress within stall_timeout."""
    DEADLINE = enum.auto()
    """Past the deadline over all attempts."""
    SHUTDOWN = enum.auto()
    """The executor is shut down, or another host is to run the job."""
    CANCEL = enum.auto()
    """Cancelled."""
