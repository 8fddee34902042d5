"""The request rate of a tool, shared by all its jobs on this machine, in whatever process they run."""

from __future__ import annotations

import time
from pathlib import Path

from executor_adapter.pipeline.disk import explained, locked

LOCK_TIMEOUT = 60.0
"""Seconds to wait for the lock of the rate's file, which nobody holds for more than a moment."""
STEP = 0.5
"""Seconds of a wait that cannot be interrupted, at most."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class RequestRate:
    """Gives each request a moment of its own; the next free one is in a file, on the clock that all processes share.

    Args:
        file: the file of the tool.
        rate: requests in a second; None: no limit.
    """

    def __init__(self, file: Path, rate: float | None) -> None:
        self._file, self._rate = file, rate

    def wait(self) -> None:
        """Wait for the next free moment, and take it."""
        if self._rate is None:
            return
        moment = self.take(time.monotonic())
        # In steps, so that a thread whose job is at its limit can end.
        while (rest := moment - time.monotonic()) > 0:
            time.sleep(min(rest, STEP))

    def take(self, now: float) -> float:
        """Take the next free moment at or after `now`, and return it; both on the monotonic clock."""
        interval = 1 / self._rate if self._rate else 0.0
        with explained(self._file), locked(self._file.with_suffix(".lock"), timeout=LOCK_TIMEOUT):
            boot, _, free = self._file.read_text().partition(" ") if self._file.exists() else ("", "", "")
            moment = max(now, float(free)) if boot == _boot() and free else now
            self._file.write_text(f"{_boot()} {moment + interval!r}")
        return moment


def _boot() -> str:
    """Return what identifies the machine's start, from which the clock counts; "-" where the system does not say."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "-"
