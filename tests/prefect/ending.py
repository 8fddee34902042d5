"""Flows of many sleeping jobs that are told to end."""

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


def in_state(server: MeasuredServer, *names: str) -> int:
    return int(server.post("/task_runs/count", {"task_runs": {"state": {"name": {"any_": list(names)}}}}))


@contextmanager
def sleeping(server: MeasuredServer, jobs: int) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a flow of so many jobs, all of which the server knows to be Pending or Running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.prefect.sleepers", str(jobs)],
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait_until(lambda: in_state(server, "Running") == 2 and in_state(server, "Pending") == jobs - 2, 120)
        yield process
    finally:
        process.kill()
        process.wait()


def seconds_to_cancelled(directory: Path, jobs: int, kind: Kind = "default") -> float:
    """From the signal until the server knows each job as Cancelled."""
    with prefect_server(kind, directory) as server, server.environment(), sleeping(server, jobs) as process:
        told = time.monotonic()
        process.send_signal(signal.SIGINT)
        wait_until(lambda: in_state(server, "Cancelled") == jobs, 60)
        took = time.monotonic() - told
        assert process.wait(timeout=30) != 0
        assert in_state(server, "Pending", "Running") == 0
    return took
