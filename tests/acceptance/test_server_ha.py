"""A Prefect server of several processes on PostgreSQL and Redis: one API records what another one shows."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from tests.acceptance.test_eviction import is_alive
from tests.servers import ROOT, Server, free_port, new_user_env, running
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.chaos

FLOW = """
from prefect import flow
from executor_adapter import Job
from executor_adapter.prefect import run_jobs

@flow
def many():
    run_jobs([Job(function=abs, args=(-n,)) for n in range(50)])

many()
"""


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


def needs_services() -> None:
    """Skip the test if PostgreSQL or Redis is missing; in CI, fail it."""
    for port, service in ((5432, "PostgreSQL"), (6379, "Redis")):
        if not answers(port):
            message = f"no {service} on 127.0.0.1:{port}: start one"
            pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)


@contextmanager
def without_database(name: str) -> Iterator[None]:
    """Drop the database in the end."""
    try:
        yield
    finally:
        with psycopg.connect("postgresql://postgres@127.0.0.1:5432/postgres", autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())


@pytest.fixture
def database() -> Iterator[str]:
    """A name for a database of its own, which is dropped in the end."""
    needs_services()
    name = f"prefect_ha_{uuid4().hex[:8]}"
    with without_database(name):
        yield name


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_two_api_servers_and_the_services_are_one_server(database: str, tmp_path: Path) -> None:
    """A flow through one API server is shown by the other, its task runs are recorded, and an interrupt ends all."""
    port = free_port()
    env = new_user_env(tmp_path)
    options = ["--port", str(port), "--database", database, "--redis", "redis://127.0.0.1:6379/7"]
    command = [sys.executable, str(ROOT / "deployments" / "server_ha.py"), *options]
    log = tmp_path / "server.log"
    with running(command, env=env, cwd=tmp_path, log=log) as process:
        wait_for(lambda: "Ctrl-C ends" in log.read_text() or process.poll() is not None, what="the servers")
        assert process.poll() is None, log.read_text()[-4000:]
        first, second = (
            Server(url=f"http://127.0.0.1:{each}", env=env | {"PREFECT_API_URL": f"http://127.0.0.1:{each}/api"})
            for each in (port, port + 1)
        )
        first.run(sys.executable, "-c", FLOW)
        completed = {"task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
        wait_for(lambda: second.call("POST", "/task_runs/count", completed) == 50, what="50 task runs")
        (flow_run,) = second.call("POST", "/flow_runs/filter", {})
        assert flow_run["state_name"] == "Completed"
        processes = children(process.pid)
        assert len(processes) == 3
    assert not any(map(is_alive, processes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--api", "0"], "--api: give at least 1 server"),
        (["--postgres", "postgresql://user:hush@127.0.0.1:1"], "--postgres"),
    ],
)
def test_what_cannot_work_is_refused_in_words(options: list[str], message: str, tmp_path: Path) -> None:
    """The message says what to give instead, and shows no password."""
    command = [sys.executable, str(ROOT / "deployments" / "server_ha.py"), "--port", str(free_port()), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "hush" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_in_use_is_refused(tmp_path: Path) -> None:
    """Another server on the port would be taken for one of ours."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        command = [sys.executable, str(ROOT / "deployments" / "server_ha.py"), "--port", port]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert f"port {port} cannot be used" in done.stderr
