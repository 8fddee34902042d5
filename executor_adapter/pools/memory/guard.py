"""The memory guard: starts no further attempt while memory is short, and ends the largest before the kernel ends any.

    left < high margin       no further attempt starts while one runs, and idle workers that hold much are ended
    left < critical margin   the attempt that holds the most is ended as MEMORY_LIMIT

Without it one job that takes all memory takes the program along: in a container the kernel may kill the whole group.
One attempt may always run, because memory that others hold may never be free again.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import time
from collections.abc import Iterable

from executor_adapter.exceptions import MemoryLimitError
from executor_adapter.job import size_text
from executor_adapter.pools.base import Assignment, WorkerPool
from executor_adapter.pools.memory.available import FASTEST_GROWTH, AvailableMemory, MemoryLevel

logger = logging.getLogger("executor_adapter.memory")

MIN_INTERVAL = 0.005
MAX_INTERVAL = 0.5
"""Seconds between two checks: as long as it takes to fill what is left, at the fastest."""
HELPLESS_INTERVAL = 0.1
"""Seconds between two checks while memory is critical and there is nothing to end."""
MAX_SHARE_OF_TIME = 0.05
"""Share of the supervisor's time that checks may take."""
_RELEASE_FACTOR = 1.25
"""Attempts start again when so many times the high margin is left: otherwise each of them would be held in turn."""


class MemoryGuard:
    """Watches the memory while attempts run. Supervisor thread only, except for `holds` and `read`."""

    def __init__(self, memory: AvailableMemory) -> None:
        self.holds = False
        """Whether no further attempt should start while one runs."""
        self.due = 0.0
        """The monotonic time of the next check, if an attempt runs or is about to start then."""
        self._memory = memory
        self._ending: Assignment | None = None
        self._helpless = False

    def read(self) -> MemoryLevel | None:
        """Return how much memory is left now, where it is scarcest; None if that is unknown. Any thread may call it."""
        with contextlib.suppress(OSError):
            return self._memory.read()
        return None

    def check(self, now: float, pools: Iterable[WorkerPool]) -> None:
        """Look at the memory, act if it is short, and set when to look again."""
        # Where nothing can be read now, as without a free descriptor, it may be again.
        self.due = now + MAX_INTERVAL
        # Not the clock: to be late once, on a busy machine, must not make the next one later.
        began = time.thread_time()
        with contextlib.suppress(OSError):
            if (level := self._memory.read()) is not None:
                interval = self._act(level, pools)
                self.due = now + max(interval, (time.thread_time() - began) / MAX_SHARE_OF_TIME)

    def _act(self, level: MemoryLevel, pools: Iterable[WorkerPool]) -> float:
        """Act if the memory is short. Return the seconds until it may be short the next time."""
        self._hold_or_release(level, pools)
        if level.is_critical:
            self._end_largest(pools)
        else:
            self._helpless = False
        interval = min(max(level.above_critical / FASTEST_GROWTH, MIN_INTERVAL), MAX_INTERVAL)
        return HELPLESS_INTERVAL if self._helpless else interval

    def _hold_or_release(self, level: MemoryLevel, pools: Iterable[WorkerPool]) -> None:
        if level.is_high:
            if not self.holds:
                self.holds = True
                logger.warning(
                    "memory is short: %s: no further attempt starts until %s are left",
                    level,
                    size_text(int(level.high_margin * _RELEASE_FACTOR)),
                )
            for pool in pools:
                pool.free_memory()
        elif self.holds and level.left >= level.high_margin * _RELEASE_FACTOR:
            self.holds = False
            logger.info("memory is free again: %s: attempts start", level)

    def _end_largest(self, pools: Iterable[WorkerPool]) -> None:
        if self._ending is not None and self._ending.worker is not None:
            return  # Its memory is about to be free.
        self._ending = None
        attempts = [(*attempt, pool) for pool in pools if (attempt := pool.largest_attempt()) is not None]
        # Only now, because attempts take memory and give it back while they are measured.
        level = self._memory.read()
        if level is None or not level.is_critical:
            return
        self._ending = next((attempt for attempt, held, _ in attempts if not held), None)
        if self._ending is not None:
            return
        found = [attempt for attempt in attempts if attempt[1] >= level.least_gain]
        if not found:
            if not self._helpless:
                self._helpless = True
                logger.warning(
                    "memory runs out: %s: no attempt in a process holds so much that ending it would help", level
                )
            return
        largest, held, pool = max(found, key=operator.itemgetter(1))
        self._ending = largest
        logger.warning(
            "memory runs out: %s: job %s is ended, which holds %s",
            level,
            largest.job.job_id,
            size_text(held),
            extra={"job_id": largest.job.job_id},
        )
        pool.end_for_memory(
            largest,
            MemoryLimitError(
                f"its process tree held {size_text(held)}, more than any other attempt, when memory ran out: {level}: "
                "give the job a memory_limit, run fewer jobs at once, or allow more memory"
            ),
        )
