"""A flow of many jobs is told to end: they are recorded as cancelled, at once or, where nobody listens, later."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.prefect_server import prefect_server
from tests.prefect.ending import in_state, seconds_to_cancelled, sleeping
from tests.prefect.many import run_many
from tests.prefect.test_mirror_under_load import wait_until


@pytest.mark.timeout(240)
def test_jobs_of_a_flow_that_is_told_to_end_are_recorded_cancelled(tmp_path: Path) -> None:
    assert seconds_to_cancelled(tmp_path, 100) < 20


@pytest.mark.timeout(240)
def test_what_a_flow_could_not_tell_before_its_end_the_next_start_tells(tmp_path: Path) -> None:
    """Its server was gone, and it was killed, as a worker kills what it told to end: nothing of its jobs is lost."""
    with prefect_server("tuned", tmp_path) as server, server.environment():

        def spooled() -> bool:
            return bool(list((server.home / "client").rglob("spool/*.jsonl")))

        with sleeping(server, 60) as process:
            server.kill()
            process.send_signal(signal.SIGINT)
            wait_until(spooled, 30)
        server.start()
        assert apart(run_many, 5)["complete"]
        assert in_state(server, "Cancelled") == 60
        assert not spooled()
