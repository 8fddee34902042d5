"""Every one of many jobs is known to the server as it ended, whatever befalls the server meanwhile.

The servers are as installed: their recorder writes one event in a transaction, their queues drop what is too much.
MANY_JOBS in the environment gives another number of jobs than 20,000.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.prefect_server import Kind, MeasuredServer, prefect_server
from tests.prefect.many_jobs import failures_of, run_many_jobs
from tests.prefect.server_proxy import ServerProxy

MANY = int(os.environ.get("MANY_JOBS", "20000"))
TIMEOUT = 1_500


def in_background(jobs: int) -> Future[dict[str, Any]]:
    """Run the flow in a process of its own, in the environment of now."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(apart, run_many_jobs, jobs)
    pool.shutdown(wait=False)
    return future


def recorded(server: MeasuredServer) -> int:
    """How many jobs are over in its database; the server itself is too busy to answer in time."""
    query = "SELECT count(*) FROM task_run WHERE state_type IN ('COMPLETED', 'FAILED')"
    with contextlib.closing(sqlite3.connect(f"file:{server.home / 'prefect.db'}?mode=ro", uri=True)) as connection:
        return int(connection.execute(query).fetchone()[0])


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds} s"
        time.sleep(0.2)


def say(what: str, told: dict[str, Any], jobs: int) -> None:
    """The figures of a run: with -s, or where it fails."""
    print(
        f"{what}: {jobs:,} jobs, {jobs / told['seconds']:.0f} recorded/s, {told['resent']} told again; "
        + told["report"]
    )


def check(server: MeasuredServer, told: dict[str, Any], jobs: int) -> None:
    """The server knows each job by its true final state, run count and times; and none but those."""
    assert told["complete"], told["report"]
    expected = Counter(failures_of(number) for number in range(jobs))
    assert told["ends"] == {"completed": jobs - expected[2], "failed": expected[2]}
    known: dict[str, dict[str, Any]] = {}
    body = {"flow_runs": {"id": {"any_": [told["flow_run_id"]]}}, "limit": 200, "sort": "ID_DESC"}
    for offset in range(0, jobs + 200, 200):
        known |= {run["dynamic_key"]: run for run in server.post("/task_runs/filter", {**body, "offset": offset})}
    assert len(known) == jobs
    for number in range(jobs):
        run, failures = known[f"job-{number}"], failures_of(number)
        assert run["state_name"] == ("Failed" if failures == 2 else "Completed"), run
        assert run["run_count"] == (1 if failures == 0 else 2), run
        start, end = (datetime.fromisoformat(run[name]).timestamp() for name in ("start_time", "end_time"))
        assert told["began"] <= start <= end <= told["began"] + told["seconds"], run


@pytest.mark.chaos
@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("kind", ["default", "tuned", "postgresql"])
def test_of_many_jobs_none_is_lost(tmp_path: Path, kind: Kind) -> None:
    with prefect_server(kind, tmp_path) as server, server.environment(PREFECT_LOGGING_LEVEL="CRITICAL"):
        told = apart(run_many_jobs, MANY)
        say(f"{kind} server", told, MANY)
        check(server, told, MANY)
        assert "dropping message" not in server.log


@pytest.mark.chaos
@pytest.mark.timeout(TIMEOUT)
def test_a_killed_server_is_told_again_what_it_lost(tmp_path: Path) -> None:
    """SIGKILL half-way, with what it had queued; restarted five seconds later."""
    killed_half_way(tmp_path, MANY)


@pytest.mark.timeout(240)
def test_a_killed_server_is_told_again_what_a_few_jobs_lost(tmp_path: Path) -> None:
    """The same with 1,500 jobs."""
    killed_half_way(tmp_path, 1_500)


def killed_half_way(directory: Path, jobs: int) -> None:
    with prefect_server("default", directory) as server, server.environment(PREFECT_LOGGING_LEVEL="CRITICAL"):
        running = in_background(jobs)
        wait_until(lambda: recorded(server) >= jobs / 3, TIMEOUT / 2)
        server.kill()
        time.sleep(5)
        server.start()
        told = running.result(timeout=TIMEOUT / 2)
        say("killed half-way", told, jobs)
        assert told["resent"], "nothing was on its way when it was killed"
        check(server, told, jobs)


@pytest.mark.chaos
@pytest.mark.timeout(TIMEOUT)
def test_ten_seconds_of_refused_connections_lose_nothing(tmp_path: Path) -> None:
    """The server goes on, but nobody gets through to it."""
    with prefect_server("default", tmp_path) as server, ServerProxy(server.port) as proxy:
        with server.environment(PREFECT_API_URL=f"http://127.0.0.1:{proxy.port}/api", PREFECT_LOGGING_LEVEL="CRITICAL"):
            running = in_background(MANY)
            wait_until(lambda: recorded(server) >= MANY / 4, TIMEOUT / 2)
            proxy.close()
            time.sleep(10)
            proxy.open()
            told = running.result(timeout=TIMEOUT / 2)
            say("refused for 10 s", told, MANY)
            check(server, told, MANY)
