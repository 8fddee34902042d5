"""A flow of many jobs is interrupted: its jobs are recorded as cancelled, by itself or by a later process."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.prefect_server import prefect_server
from tests.prefect.cancelled_flow import count_in_state, seconds_to_cancelled, sleeping_flow
from tests.prefect.many_jobs import run_many_jobs
from tests.prefect.test_mirror_under_load import wait_until


@pytest.mark.timeout(240)
def test_jobs_of_an_interrupted_flow_are_recorded_as_cancelled(tmp_path: Path) -> None:
    """After SIGINT the server has recorded all 100 jobs as Cancelled within 20 seconds."""
    assert seconds_to_cancelled(tmp_path, 100) < 20


@pytest.mark.timeout(240)
def test_states_that_a_flow_could_not_report_are_sent_by_the_next_process(tmp_path: Path) -> None:
    """The next process sends the final states of a flow that was killed while the server was down."""
    with prefect_server("tuned", tmp_path) as server, server.environment():

        def spooled() -> int:
            files = (server.home / "client").rglob("spool/*.jsonl")
            return sum(len(file.read_bytes().splitlines()) for file in files)

        with sleeping_flow(server, 60) as process:
            server.kill()
            process.send_signal(signal.SIGINT)
            wait_until(lambda: spooled() >= 60, 30)
        server.start()
        assert apart(run_many_jobs, 5)["complete"]
        assert count_in_state(server, "Cancelled") == 60
        assert not spooled()
