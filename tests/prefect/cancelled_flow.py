"""Starts flows of many sleeping jobs and interrupts them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.prefect_server import Kind, MeasuredServer, prefect_server
from tests.prefect.test_mirror_under_load import wait_until
from tests.servers import ROOT


def count_in_state(server: MeasuredServer, *names: str) -> int:
    """Return how many task runs of the server are in one of these states."""
    return int(server.post("/task_runs/count", {"task_runs": {"state": {"name": {"any_": list(names)}}}}))


@contextmanager
def sleeping_flow(server: MeasuredServer, jobs: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start the process of a flow of sleeping jobs; the server has recorded each as Pending or Running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.prefect.sleeping_flow", str(jobs)],
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait_until(
            lambda: count_in_state(server, "Running") == 2 and count_in_state(server, "Pending") == jobs - 2, 120
        )
        yield process
    finally:
        process.kill()
        process.wait()


def seconds_to_cancelled(directory: Path, jobs: int, kind: Kind = "default") -> float:
    """Return the seconds from the signal until the server has recorded each job as Cancelled."""
    with prefect_server(kind, directory) as server, server.environment(), sleeping_flow(server, jobs) as process:
        interrupted_at = time.monotonic()
        process.send_signal(signal.SIGINT)
        wait_until(lambda: count_in_state(server, "Cancelled") == jobs, 60)
        took = time.monotonic() - interrupted_at
        assert process.wait(timeout=30) != 0
        assert count_in_state(server, "Pending", "Running") == 0
    return took
