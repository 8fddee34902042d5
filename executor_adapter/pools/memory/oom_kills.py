"""Tells whether the kernel has killed a process because memory ran out (an OOM kill).

A SIGKILL shows nothing of its sender. But the kernel counts its OOM kills for each control group, before it sends the
signal. So a worker that died of SIGKILL just after the number rose was killed by the kernel.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from pathlib import Path

from executor_adapter.pools.memory.control_groups import ROOT, ControlGroup, groups_of_this_process

_REPORT_TIMEOUT = 5.0
"""Seconds from an OOM kill to the report of the death: what the process had started must be dead too."""


class OomKills:
    """Counts the OOM kills of this process's control group, and claims them for workers that died."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._lock = threading.RLock()
        self._group: ControlGroup | None = None
        self._counted: int | None = None
        self._unclaimed: deque[float] = deque(maxlen=1000)
        """When the kills were seen that no worker's death has claimed."""

    def renew_lock(self) -> None:
        """Replace the lock, in a forked process: a thread of the parent may have held it."""
        self._lock = threading.RLock()

    def observe(self) -> bool:
        """Take note of kills up to now. Return False if the system does not show how many there were."""
        with self._lock:
            if self._group is None:
                groups = groups_of_this_process(self._root)
                if not groups:
                    return False
                self._group = groups[0]
            count = self._group.oom_kills()
            if count is None:
                return False
            if self._counted is not None:
                self._unclaimed.extend([time.monotonic()] * min(count - self._counted, 1000))
            self._counted = count
            return True

    def claim(self) -> str | None:
        """Claim one kill for a worker that has just died of SIGKILL.

        Return the name of the control group, or "" if the kernel killed nothing, or None if that is not known.
        """
        with self._lock:
            known_before = self._counted is not None
            if not self.observe() or not known_before:
                return None
            oldest = time.monotonic() - _REPORT_TIMEOUT
            while self._unclaimed and self._unclaimed[0] < oldest:
                self._unclaimed.popleft()
            if not self._unclaimed:
                return ""
            self._unclaimed.popleft()
            assert self._group is not None
            return self._group.name


oom_kills = OomKills()
"""The kills in the group of this process, shared by its executors, so that none is claimed twice."""

os.register_at_fork(after_in_child=oom_kills.renew_lock)
