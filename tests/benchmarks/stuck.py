"""A program whose threads are stuck in C.

`python -m tests.benchmarks.stuck THREADS LIMIT` prints as JSON how late each job finished, and when the program called
for its exit.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from tests.benchmarks.functions import stick_in_c


def measure_stuck(threads: int, limit: float) -> list[float]:
    """Measure the seconds after its limit at which the future of each job was done."""
    with JobExecutor(threads, config=Settings()) as executor:
        started = time.monotonic()
        futures = [
            executor.submit(Job(function=stick_in_c, pool="thread", max_runtime=limit, retry_attempts=0))
            for _ in range(threads)
        ]
        late = []
        for future in futures:
            assert isinstance(future.exception(), TimeoutError)
            late.append(time.monotonic() - started - limit)
        assert executor.stats().abandoned_threads == threads
    return late


if __name__ == "__main__":
    logging.getLogger("executor_adapter").setLevel(logging.CRITICAL)
    lateness = measure_stuck(int(sys.argv[1]), float(sys.argv[2]))
    print(json.dumps({"late": lateness, "exit_called": time.monotonic()}))
