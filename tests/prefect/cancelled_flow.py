"""Starts flows of many sleeping jobs and interrupts them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

from tests.benchmarks.prefect_server import MeasuredServer
from tests.servers import ROOT
from tests.waiting import PATIENCE, wait_for


@dataclass(frozen=True)
class SleepingFlow:
    """The process of a flow of sleeping jobs, of which the server may have others."""

    process: subprocess.Popen[bytes]
    name: str
    server: MeasuredServer

    def count(self, *states: str) -> int:
        """Return how many task runs of the flow are in one of these states."""
        body = {"flows": {"name": {"any_": [self.name]}}, "task_runs": {"state": {"name": {"any_": list(states)}}}}
        return int(self.server.post("/task_runs/count", body))


@contextmanager
def sleeping_flow(server: MeasuredServer, jobs: int) -> Iterator[SleepingFlow]:
    """Start the process of a flow of sleeping jobs; the server has recorded each as Pending or Running."""
    name = f"sleeping-{uuid4().hex[:8]}"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.prefect.sleeping_flow", str(jobs), name],
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    flow = SleepingFlow(process, name, server)
    try:
        wait_for(lambda: flow.count("Running") == 2 and flow.count("Pending") == jobs - 2)
        yield flow
    finally:
        process.kill()
        process.wait()


def seconds_to_cancelled(server: MeasuredServer, jobs: int) -> float:
    """Return the seconds from the signal until the server has recorded each job as Cancelled."""
    with server.environment(), sleeping_flow(server, jobs) as flow:
        interrupted_at = time.monotonic()
        flow.process.send_signal(signal.SIGINT)
        wait_for(lambda: flow.count("Cancelled") == jobs)
        took = time.monotonic() - interrupted_at
        assert flow.process.wait(timeout=PATIENCE) != 0
        assert flow.count("Pending", "Running") == 0
    return took
