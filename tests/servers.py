"""Real Prefect servers and the processes that use them, each ended by its own process group."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

QUICK = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1",
}


def poll(probe: Callable[[], Any], *, within: float, what: str) -> Any:
    """The first true value of `probe()`, asked for five times a second.

    Raises:
        AssertionError: there was none within so many seconds.
    """
    ends = time.monotonic() + within
    while time.monotonic() < ends:
        if value := probe():
            return value
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {within:.0f} s")


@contextmanager
def running(command: list[str], *, env: dict[str, str], cwd: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own; on leaving it is interrupted, then it and all that it started are killed."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell's background job, as the tests may be, ignores SIGINT, and hands that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        yield process
    except AssertionError as error:
        error.add_note(f"{log.name} ends:\n{log.read_text()[-4000:]}")
        raise
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prefect(*words: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *words]


def _answer(request: urllib.request.Request) -> tuple[bytes] | None:
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return (answer.read(),)
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return None


@dataclass(frozen=True, kw_only=True)
class Server:
    """A Prefect server, and the environment in which a process uses it."""

    url: str
    env: dict[str, str]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """What its API answers, from JSON; None for an empty answer. Asked again while its database is busy (503)."""
        request = urllib.request.Request(
            f"{self.url}/api{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        (text,) = poll(lambda: _answer(request), within=30, what=f"an answer to {method} {path}")
        return json.loads(text) if text else None

    def run(self, *command: str) -> str:
        """What a command printed that uses this server, started in the clone; it must succeed."""
        done = subprocess.run(command, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def healthy(self) -> bool:
        try:
            return bool(self.call("GET", "/health"))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def new_user_env(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a new user: a Prefect home of its own, nothing of Prefect's or ours set but `variables`.

    The package is importable, as an editable install makes it.
    """
    ours = ("PREFECT_", "EXECUTOR_ADAPTER_")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return inherited | QUICK | {"PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)} | variables


@contextmanager
def prefect_server(directory: Path, env: dict[str, str]) -> Iterator[Server]:
    """A Prefect server on SQLite in `directory`, on a free port, with nothing in it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    api = {"PREFECT_API_URL": f"{url}/api", "PREFECT_UI_API_URL": f"{url}/api", "PREFECT_HOME": str(directory)}
    server = Server(url=url, env=env | api)
    command = prefect("server", "start", "--host", "127.0.0.1", "--port", str(port))
    with running(command, env=server.env, cwd=directory, log=directory / "server.log"):
        poll(server.healthy, within=60, what=f"a Prefect server on {url}")
        yield server
