"""Measures `jobs watch` with a thousand live jobs, and the cost of an executor's statistics; each in a new process."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from executor_adapter.cli.watch import RESERVED_LINES, read_frame, render
from executor_adapter.job.results import Progress
from executor_adapter.job.status import JobStatus
from executor_adapter.store import ALL, JobRecord, open_store
from executor_adapter.store.host import new_host
from executor_adapter.supervision.outcome import MAX_ENDED_JOBS, EndedJob, StateTracker, figures

LINES = 50


def measure_frames(frames: int) -> list[float]:
    """Measure the seconds per frame, from the store to the screen, while 1,000 of 20,000 jobs are live."""
    with TemporaryDirectory() as directory:
        store = open_store(f"sqlite:///{directory}/jobs.db")
        host, now = new_host(), time.time()
        store.register(host, lease=600)
        records = [_record(n, now) for n in range(20_000)]
        for begin in range(0, len(records), 1000):
            batch = [replace(record, host=host.host_id) for record in records[begin : begin + 1000]]
            store.write(host.host_id, batch, lease=600)
        took = []
        with Path("/dev/null").open("w") as sink:
            screen = Console(file=sink, width=150, height=LINES, force_terminal=True)
            for _ in range(frames):
                began = time.perf_counter()
                screen.print(render(read_frame(store, ALL, LINES - RESERVED_LINES), screen.width))
                took.append(time.perf_counter() - began)
        store.close()
    return took


def _record(number: int, now: float) -> JobRecord:
    status = JobStatus.COMPLETED if number >= 1000 else JobStatus.RUNNING if number < 200 else JobStatus.PENDING
    return JobRecord(
        job_id=f"job-{number:06}",
        status=status,
        function="module:function",
        call=json.dumps({"function": "module:function"}),
        created_at=now - number,
        started_at=None if status is JobStatus.PENDING else now - number,
        completed_at=now if status is JobStatus.COMPLETED else None,
        progress=Progress(number % 100, 100, "page"),
    )


def measure_append(count: int) -> float:
    """Measure the microseconds to keep the figures of a job."""
    ended, status = StateTracker(()).ended, JobStatus.COMPLETED
    began = time.perf_counter()
    for _ in range(count):
        ended.append((1.0, status, 0.5, 0.1))
    return (time.perf_counter() - began) / count * 1e6


def measure_question() -> float:
    """Measure the milliseconds to compute the figures of a full window."""
    ended: list[EndedJob] = [(1000.0 + n % 7, JobStatus.COMPLETED, 999.0, n % 13) for n in range(MAX_ENDED_JOBS)]
    began = time.perf_counter()
    figures(ended, now=1010.0, window=3600.0)
    return (time.perf_counter() - began) * 1e3
