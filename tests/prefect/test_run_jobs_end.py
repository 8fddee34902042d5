"""A flow of many jobs is interrupted: its jobs are recorded as cancelled, by itself or by a later process.

By day test_signals.py interrupts a flow of a few, and test_scheduler_mirror.py leaves states to a later mirror.
"""

from __future__ import annotations

import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.prefect_server import MeasuredServer
from tests.prefect.cancelled_flow import seconds_to_cancelled, sleeping_flow
from tests.prefect.many_jobs import run_many_jobs
from tests.prefect.sample_events import jobs_in, outbox_of
from tests.prefect.server_proxy import ServerProxy
from tests.waiting import wait_for

pytestmark = pytest.mark.nightly


@pytest.fixture
def server(prefect_api: str, tmp_path: Path) -> MeasuredServer:
    """The server of the session, for processes with a home of their own."""
    port = urlsplit(prefect_api).port
    assert port is not None
    return MeasuredServer(port=port, home=tmp_path)


def test_jobs_of_an_interrupted_flow_are_recorded_as_cancelled(server: MeasuredServer) -> None:
    """After SIGINT the server has recorded all 100 jobs as Cancelled soon."""
    assert seconds_to_cancelled(server, 100) < 60


def test_states_that_a_flow_could_not_report_are_sent_by_the_next_process(server: MeasuredServer) -> None:
    """The next process sends the final states of a flow that was interrupted while the server was away."""

    outbox = outbox_of(server.home / "client")
    with ServerProxy(server.port) as proxy, server.environment(PREFECT_API_URL=f"http://127.0.0.1:{proxy.port}/api"):
        with sleeping_flow(server, 60) as flow:
            proxy.close()
            flow.process.send_signal(signal.SIGINT)
            wait_for(lambda: len(jobs_in(outbox)) >= 60)
        proxy.open()
        assert apart(run_many_jobs, 5)["complete"]
        assert flow.count("Cancelled") == 60
        assert not jobs_in(outbox)
