"""The process tree of a job that announced itself, watched from outside until it is dead."""

from __future__ import annotations

import os
import select
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Tree:
    """`began`: when its function said that it runs, on the monotonic clock."""

    began: float
    pidfds: tuple[int, ...]

    @classmethod
    def announced_at(cls, path: Path, job: Future[Any]) -> Tree | None:
        """The tree that writes itself to `path` (functions.announce), waited for; None where the machine was so busy
        that the job met its limit before it came to that."""
        while not path.exists():
            if job.done() and not path.exists():
                return None
            time.sleep(0.0005)
        began, *pids = path.read_text().split()
        path.unlink()
        return cls(float(began), tuple(os.pidfd_open(int(pid)) for pid in pids))

    def wait_until_dead(self) -> float:
        """The time at which the last of it was seen dead."""
        for pidfd in self.pidfds:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            assert poll.poll(20_000), "it does not end"
            os.close(pidfd)
        return time.monotonic()
