"""Forks hosts that have all they need imported: `python -m tests.contract.stores.nursery`, and a line of JSON for each.

It answers with the process id of the host; a host says nothing, but what its jobs leave in the ledger.
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
from executor_adapter.store import sql  # what a host loads when it opens its store
from tests.contract.stores import crash_jobs

__all__ = ["HostOrder", "sql"]

BURST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOrder:
    """What a host is to do: recover jobs again and again, and submit those of `names` itself."""

    url: str
    ledger: str
    seed: int
    names: list[str]

    def live(self) -> None:
        settings = Settings(store=StoreSettings(recover_every=0.05))
        with JobExecutor(50, config=settings, store=self.url) as executor:
            draw = random.Random(self.seed)
            for at in range(0, len(self.names), BURST):
                burst = self.names[at : at + BURST]
                for name in burst:
                    executor.submit(self._job(name, draw))
                assert executor.flush(30)
                crash_jobs.note(self.ledger, "acknowledged", "\n".join(burst))
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
            args=(self.ledger, name, draw.random() * 0.3),
            pool=pool,
            retry=RetryPolicy(retry_attempts=2, retry_delay=0.05),
        )


def raise_hosts() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            HostOrder(**json.loads(line)).live()
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    raise_hosts()
