"""A program that forks hosts with everything imported: `python -m tests.contract.stores.host_forker`.

It reads one line of JSON for each host and answers with the host's process id. A host prints nothing; its jobs write to
the run log.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass

from executor_adapter import Job, JobExecutor, RetryPolicy
from executor_adapter.config import Settings, StoreSettings
from executor_adapter.store import sql  # imported before the fork, because each host needs it
from tests.contract.stores import crash_jobs
from tests.waiting import PATIENCE

__all__ = ["HostOrder", "sql"]

BURST_SIZE = 10
"""Jobs that a host submits before it flushes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOrder:
    """Commands a host: recover jobs repeatedly, and submit a job for each of `names`."""

    url: str
    run_log: str
    seed: int
    names: list[str]

    def run(self) -> None:
        """Run the host until it is killed."""
        settings = Settings(store=StoreSettings(recover_every=0.05))
        with JobExecutor(50, config=settings, store=self.url) as executor:
            draw = random.Random(self.seed)
            for at in range(0, len(self.names), BURST_SIZE):
                burst = self.names[at : at + BURST_SIZE]
                for name in burst:
                    executor.submit(self._job(name, draw))
                assert executor.flush(PATIENCE)
                crash_jobs.note(self.run_log, "acknowledged", "\n".join(burst))
            time.sleep(600)

    def _job(self, name: str, draw: random.Random) -> Job:
        function, pool = draw.choice(
            [
                (crash_jobs.work, "process"),
                (crash_jobs.work, "thread"),
                (crash_jobs.work, "thread"),
                (crash_jobs.work_on_loop, "coroutine"),
                (crash_jobs.fail, "thread"),
                (crash_jobs.fail_once, "thread"),
            ]
        )
        return Job(
            function=function,
            job_id=name,
            args=(self.run_log, name, draw.random() * 0.3),
            pool=pool,
            retry=RetryPolicy(retry_attempts=2, retry_delay=0.05),
        )


def fork_hosts() -> None:
    """Fork a host for each line of the standard input."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that killed hosts do not stay as zombies
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            HostOrder(**json.loads(line)).run()
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    fork_hosts()
