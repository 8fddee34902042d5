"""The server records the true final state of each of many jobs, whatever happens to it meanwhile.

The servers have Prefect's default settings: their recorder writes one event in a transaction, and their queues drop
what is too much. The variable MANY_JOBS sets another number of jobs than 20,000.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from executor_adapter.prefect.mirror.mirror import STORE_INTERVAL
from executor_adapter.prefect.mirror.runs import FLOW_END_STALL_TIMEOUT
from tests.benchmarks.apart import apart
from tests.benchmarks.prefect_server import Kind, MeasuredServer, prefect_server
from tests.prefect.many_jobs import failures_of, run_many_jobs
from tests.prefect.orphaned_flow import TASKS
from tests.prefect.sample_events import jobs_in, outbox_of
from tests.prefect.server_proxy import ServerProxy, answering
from tests.servers import ROOT
from tests.waiting import PATIENCE, wait_for

MANY = int(os.environ.get("MANY_JOBS", "20000"))
TIMEOUT_SECONDS = 1_500


def in_background(jobs: int) -> Future[dict[str, Any]]:
    """Run the flow in a process of its own, with the environment of this moment."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(apart, run_many_jobs, jobs)
    pool.shutdown(wait=False)
    return future


def count_recorded(server: MeasuredServer) -> int:
    """Count the finished jobs in the server's database, because the server is too busy to answer in time."""
    query = "SELECT count(*) FROM task_run WHERE state_type IN ('COMPLETED', 'FAILED')"
    with contextlib.closing(sqlite3.connect(f"file:{server.home / 'prefect.db'}?mode=ro", uri=True)) as connection:
        return int(connection.execute(query).fetchone()[0])


def wait_until_recorded(server: MeasuredServer, jobs: float) -> None:
    """Wait until so many jobs are recorded, for as long as there are more and more of them."""
    while (recorded := count_recorded(server)) < jobs:
        wait_for(lambda recorded=recorded: count_recorded(server) > recorded)  # type: ignore[misc]


def print_figures(what: str, ran: dict[str, Any], jobs: int) -> None:
    """Print the figures of a run. pytest shows them with -s, or if the test fails."""
    print(
        f"{what}: {jobs:,} jobs, {jobs / ran['seconds']:.0f} recorded/s, {ran['resent']} sent again; " + ran["report"]
    )


def check_recorded(server: MeasuredServer, ran: dict[str, Any], jobs: int) -> None:
    """Assert that the server knows exactly these jobs, with their true final states, run counts and times.

    Its recorder has refused nothing: that would cost others the states that it had taken together with ours.
    """
    assert ran["complete"], ran["report"]
    assert "task_run_recorder - Error" not in server.log
    expected = Counter(failures_of(number) for number in range(jobs))
    assert ran["ends"] == {"completed": jobs - expected[2], "failed": expected[2]}
    known: dict[str, dict[str, Any]] = {}
    body = {"flow_runs": {"id": {"any_": [ran["flow_run_id"]]}}, "limit": 200, "sort": "ID_DESC"}
    for offset in range(0, jobs + 200, 200):
        known |= {run["dynamic_key"]: run for run in server.post("/task_runs/filter", {**body, "offset": offset})}
    assert len(known) == jobs
    for number in range(jobs):
        run, failures = known[f"job-{number}"], failures_of(number)
        assert run["state_name"] == ("Failed" if failures == 2 else "Completed"), run
        assert run["run_count"] == (1 if failures == 0 else 2), run
        start, end = (datetime.fromisoformat(run[name]).timestamp() for name in ("start_time", "end_time"))
        assert ran["began"] <= start <= end <= ran["began"] + ran["seconds"], run


@pytest.mark.chaos
@pytest.mark.timeout(TIMEOUT_SECONDS)
@pytest.mark.parametrize("kind", ["default", "tuned", "postgresql"])
def test_no_job_of_many_is_lost(tmp_path: Path, kind: Kind) -> None:
    """No job of many is lost on any kind of server, and no queue of the server overflows."""
    with prefect_server(kind, tmp_path) as server, server.environment(PREFECT_LOGGING_LEVEL="CRITICAL"):
        ran = apart(run_many_jobs, MANY)
        print_figures(f"{kind} server", ran, MANY)
        check_recorded(server, ran, MANY)
        assert "dropping message" not in server.log


@pytest.mark.chaos
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_states_that_a_killed_server_lost_are_sent_again(tmp_path: Path) -> None:
    """States in the queues of a server that is killed three times are sent again to its successors."""
    run_with_killed_server(tmp_path, MANY, kills=3)


@pytest.mark.nightly
def test_states_of_a_few_jobs_that_a_killed_server_lost_are_sent_again(tmp_path: Path) -> None:
    """States of 120 jobs that a killed server lost are sent again."""
    run_with_killed_server(tmp_path, 120, away=1.0)


def run_with_killed_server(directory: Path, jobs: int, away: float = 5.0, kills: int = 1) -> None:
    """Run the jobs with a server that is killed and started again `away` seconds later; check its record."""
    with prefect_server("default", directory) as server, server.environment(PREFECT_LOGGING_LEVEL="CRITICAL"):
        running = in_background(jobs)
        for number in range(1, kills + 1):
            wait_until_recorded(server, jobs * number / (kills + 2))
            server.kill()
            time.sleep(away)
            server.start()
        ran = running.result(timeout=TIMEOUT_SECONDS / 2)
        print_figures(f"killed {kills} times", ran, jobs)
        assert ran["resent"], "nothing was in flight when it was killed"
        check_recorded(server, ran, jobs)


@pytest.mark.chaos
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_ten_seconds_of_refused_connections_lose_nothing(tmp_path: Path) -> None:
    """A server that refuses connections for ten seconds gets all states afterwards."""
    run_through_outage(tmp_path, "refused for 10 s", lambda port: time.sleep(10))


@pytest.mark.chaos
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_a_proxy_in_trouble_costs_no_state(tmp_path: Path) -> None:
    """A proxy that answers 422, 429 with Retry-After, 500 and nothing at all, one after another, costs no state."""

    def answer_in_turn(port: int) -> None:
        for status in (422, 429, 500):
            with answering(status, port):
                time.sleep(10)
        with socket.create_server(("127.0.0.1", port)):  # Requests are taken by the kernel, and by nobody else.
            time.sleep(25)

    run_through_outage(tmp_path, "422, 429, 500 and no answer", answer_in_turn)


def run_through_outage(directory: Path, what: str, outage: Callable[[int], object]) -> None:
    """Run the jobs with a server at whose port there is an `outage` for a while; check its record."""
    with prefect_server("default", directory) as server, ServerProxy(server.port) as proxy:
        with server.environment(PREFECT_API_URL=f"http://127.0.0.1:{proxy.port}/api", PREFECT_LOGGING_LEVEL="CRITICAL"):
            running = in_background(MANY)
            wait_until_recorded(server, MANY / 4)
            proxy.close()
            outage(proxy.port)
            proxy.open()
            ran = running.result(timeout=TIMEOUT_SECONDS / 2)
            print_figures(what, ran, MANY)
            check_recorded(server, ran, MANY)


@pytest.mark.chaos
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_a_server_whose_database_is_emptied_costs_the_states_of_its_flow_run_alone(tmp_path: Path) -> None:
    """The flow run is gone, so its states are set aside, which its log counts. Those of the next flow are all kept."""
    with prefect_server("default", tmp_path) as server, server.environment(PREFECT_LOGGING_LEVEL="CRITICAL"):
        running = in_background(MANY)
        wait_until_recorded(server, MANY / 3)
        with (
            contextlib.closing(sqlite3.connect(server.home / "prefect.db", timeout=PATIENCE)) as connection,
            connection,
        ):
            connection.execute("BEGIN IMMEDIATE")
            for table in ("task_run", "task_run_state", "flow_run", "flow_run_state"):
                connection.execute(f"DELETE FROM {table}")
        with pytest.raises(subprocess.CalledProcessError):  # Prefect's engine fails: its flow run is not found.
            running.result(timeout=TIMEOUT_SECONDS / 2)
        # The server keeps what was in flight in its queue, and others' events behind it, until it is started again.
        print("the next flow:", apart(run_many_jobs, 200)["report"])
        server.kill()
        server.start()
        programs = count_programs_until_all_is_sent(server)
        wait_for(lambda: count_recorded(server) == 200 + programs)


@pytest.mark.chaos
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_a_killed_program_leaves_its_states_to_the_next(tmp_path: Path) -> None:
    """What a program had not got recorded when it was killed, beside a server that is slow, its successors send."""
    with prefect_server("default", tmp_path) as server, server.environment():
        with mirroring(MANY) as process:
            wait_until_recorded(server, MANY / 10)
            process.kill()
            print(f"killed with {count_recorded(server):,} of {MANY:,} recorded")
        later = count_programs_until_all_is_sent(server)
        completed = {"task_runs": {"state": {"name": {"any_": ["Completed"]}}}}
        wait_for(lambda: server.post("/task_runs/count", completed) == MANY + later)


@pytest.mark.chaos
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_a_program_that_is_killed_while_its_jobs_run_loses_its_last_second_alone(tmp_path: Path) -> None:
    """What ended more than a second before the kill, its successor sends, though no server has answered before."""
    ended = tmp_path / "ended"
    with prefect_server("default", tmp_path) as server, server.environment():
        server.kill()
        with mirroring(MANY, ended) as process:
            wait_for(lambda: ended.exists() and len(ended.read_text().splitlines()) > min(MANY // 4, 2_000))
            process.kill()
            killed_at = time.time()
        server.start()
        later = count_programs_until_all_is_sent(server)
        wait_for(lambda: count_recorded(server) > later)
        body = {"task_runs": {"state": {"name": {"any_": ["Completed"]}}}, "limit": 200}
        known: set[str] = set()
        for offset in range(0, MANY + 200, 200):
            known |= {run["dynamic_key"] for run in server.post("/task_runs/filter", {**body, "offset": offset})}
    ends = dict(line.split() for line in ended.read_text().splitlines())
    lost = [killed_at - float(at) for number, at in ends.items() if f"killed-{number}" not in known]
    print(f"killed while its jobs ran: {len(lost)} of {len(ends)} lost, the first {max(lost, default=0):.1f} s before")
    assert len(ends) - len(lost) == len(known)  # The later programs have the id of the first job again.
    assert max(lost, default=0) < STORE_INTERVAL + 1.0


def mirroring(jobs: int, *ended: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.prefect.mirrored_jobs", str(jobs), *map(str, ended)]
    return subprocess.Popen(command, cwd=ROOT)


def count_programs_until_all_is_sent(server: MeasuredServer) -> int:
    """Run programs with one job each until nothing is left on disk; return how many."""
    programs = 0
    while jobs_in(outbox_of(server.home / "client")):
        assert mirroring(1).wait(timeout=PATIENCE) == 0
        programs += 1
    return programs


@pytest.mark.chaos
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_a_server_that_is_away_for_longer_than_the_end_waits_gets_all_states_later(tmp_path: Path) -> None:
    """A program whose server is away until it ends leaves its states on disk, and later programs send them."""
    with prefect_server("default", tmp_path) as server, server.environment():
        with mirroring(MANY) as process:
            wait_until_recorded(server, MANY / 20)
            server.kill()
            killed_at = time.monotonic()
            assert process.wait(timeout=PATIENCE) == 0
            print(f"away: it has ended {time.monotonic() - killed_at:.0f} s after its server, with {MANY:,} jobs")
        server.start()
        later = count_programs_until_all_is_sent(server)
        completed = {"task_runs": {"state": {"name": {"any_": ["Completed"]}}}}
        wait_for(lambda: server.post("/task_runs/count", completed) == MANY + later)


@pytest.mark.chaos
@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_a_flow_whose_server_is_gone_for_good_ends_in_time(tmp_path: Path) -> None:
    """A flow under JobTaskRunner waits 30 s for its server, besides what Prefect waits, and its states are on disk."""
    with prefect_server("default", tmp_path) as server, server.environment(PREFECT_CLIENT_MAX_RETRIES="0"):
        command = [sys.executable, "-m", "tests.prefect.orphaned_flow", str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT) as process:
            wait_for((tmp_path / "begun").exists)
            server.kill()
            (tmp_path / "gone").touch()
            gone_at = time.monotonic()
            process.wait(timeout=FLOW_END_STALL_TIMEOUT + 60)
            print(f"gone for good: the flow's program has ended after {time.monotonic() - gone_at:.0f} s")
        assert len(jobs_in(outbox_of(server.home / "client"))) == TASKS
