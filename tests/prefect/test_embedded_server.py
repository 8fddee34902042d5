"""Prefect's embedded server, which it starts where no API is configured."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT, create_database, new_user_env, processes_of
from tests.waiting import PATIENCE, wait_for

PROGRAM = """
import sys, threading
from executor_adapter.prefect import job_task

@job_task(pool="thread", retry_attempts=0)
def one() -> int:
    return 1

results = []
threads = [threading.Thread(target=lambda: results.append(one())) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sum(results), flush=True)
sys.stdin.read()
"""


def servers_of(home: Path) -> list[str]:
    """Return the process ids of the Prefect servers whose data is in `home`."""
    return [process.pid for process in processes_of(str(home)) if "uvicorn" in process.command]


@pytest.mark.parametrize(
    "ends_by",
    [pytest.param(signal.SIGKILL, id="killed"), pytest.param(None, id="exits", marks=pytest.mark.chaos)],
)
def test_calls_outside_a_flow_share_one_server_that_ends_with_the_program(
    tmp_path: Path, ends_by: signal.Signals | None
) -> None:
    """Calls of job tasks in several threads start one embedded server, and none outlives the program, killed or not."""
    create_database(tmp_path)
    settings = {"LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore", "SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "200"}
    env = new_user_env(tmp_path, **{f"PREFECT_{name}": value for name, value in settings.items()})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, env=env, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == b"3\n"
            assert len(servers_of(tmp_path)) == 1
            if ends_by is not None:
                process.send_signal(ends_by)
            process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    wait_for(lambda: not servers_of(tmp_path))


@pytest.mark.nightly
def test_a_server_that_starts_ends_with_its_program(tmp_path: Path) -> None:
    """A program that is killed while its embedded server starts leaves no server."""
    create_database(tmp_path)
    program = "from executor_adapter.prefect import start_embedded_server\nstart_embedded_server()\nprint('started')"
    run = {"env": new_user_env(tmp_path), "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **run) as process:  # type: ignore[call-overload]
        try:
            wait_for(lambda: any("bond" in word for each in processes_of(str(tmp_path)) for word in each.command))
            assert servers_of(tmp_path)
        finally:
            process.kill()
        assert process.stdout.read() == b""  # It was killed before the server had started.
    wait_for(lambda: not processes_of(str(tmp_path)))
