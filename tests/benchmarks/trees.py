"""The process tree of a job, watched from outside until it is dead."""

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
    """The processes of a job. `began` is the monotonic time at which its function started."""

    began: float
    pidfds: tuple[int, ...]

    @classmethod
    def announced_at(cls, path: Path, job: Future[Any]) -> Tree | None:
        """Wait for the tree that a job writes to `path` (see functions.announce).

        Returns None if the machine was so busy that the job reached its limit before it wrote the file.
        """
        while not path.exists():
            if job.done() and not path.exists():
                return None
            time.sleep(0.0005)
        began, *pids = path.read_text().split()
        path.unlink()
        return cls(float(began), tuple(os.pidfd_open(int(pid)) for pid in pids))

    def wait_until_dead(self) -> float:
        """Wait until all processes are dead, and return the time."""
        for pidfd in self.pidfds:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            assert poll.poll(20_000), "it does not end"
            os.close(pidfd)
        return time.monotonic()
