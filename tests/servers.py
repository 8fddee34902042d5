"""Real Prefect servers and the processes that use them. Each process is terminated with its process group."""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.waiting import PATIENCE, wait_for

ROOT = Path(__file__).resolve().parents[1]

RUN_VARIABLE = "RUN_OF_TESTS"
"""A variable of the environment with the id of the run of tests in which a process was started."""

DATABASE_VARIABLE = "PREFECT_API_DATABASE_CONNECTION_URL"
"""A variable of Prefect with the URL of a server's database."""

QUICK = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1",
}


WITHOUT_SCHEDULES = {
    f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false"
    for service in ("SCHEDULER", "FOREMAN", "PAUSE_EXPIRATIONS", "REPOSSESSOR", "CANCELLATION_CLEANUP")
}
"""Variables of a server that runs no schedules, watches no workers, ends no pauses, and cancels nothing by itself.

Every 20 seconds Prefect's clean-up would cancel what is left of a cancelled flow run, perhaps before a test has looked.
"""

EMPTY_DATABASES = ROOT / ".pytest_cache" / "prefect"
"""Databases with all tables and no rows, one per version of Prefect."""


@contextmanager
def postgresql_database(name: str) -> Iterator[str]:
    """Create a database for a Prefect server, and yield its URL; drop it afterwards, and before where one was left."""
    server = "postgres@127.0.0.1:5432"
    with psycopg.connect(f"postgresql://{server}/test", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
    try:
        yield f"postgresql+asyncpg://{server}/{name}"
    finally:
        with psycopg.connect(f"postgresql://{server}/test", autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def create_database(home: Path) -> None:
    """Create the database of a Prefect server in `home`, so that the server does not run its migrations.

    Migrations take longer than everything else at the start of a server, so they run once and the file is copied.
    """
    EMPTY_DATABASES.mkdir(parents=True, exist_ok=True)
    empty = EMPTY_DATABASES / f"{version('prefect')}.db"
    with (EMPTY_DATABASES / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not empty.exists():
            _migrate(empty)
    shutil.copy(empty, home / "prefect.db")


def _migrate(file: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        env = new_user_env(Path(directory))
        subprocess.run(prefect("server", "database", "upgrade", "--yes"), env=env, capture_output=True, check=True)
        shutil.move(Path(directory) / "prefect.db", file)


_prctl = ctypes.CDLL(None).prctl
PR_SET_PDEATHSIG = 1


def _prepare() -> None:
    """Let a new process end with these tests, also when they are killed, and let SIGINT interrupt it.

    The tests may be a background job of a shell, which ignores SIGINT and passes that on.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(
    command: list[str], *, env: dict[str, str], cwd: Path, log: Path, patience: float = 15.0
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in its own session; afterwards interrupt it, then kill it and all processes that it started.

    It has `patience` seconds to end after the interrupt.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_prepare,
        )
    try:
        yield process
    except AssertionError as error:
        error.add_note(f"{log.name} ends:\n{log.read_text()[-4000:]}")
        raise
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of this machine."""

    pid: str
    command: list[str]


def processes_of(mark: str) -> list[Process]:
    """Return the processes with `mark` in their environment, which those that they start inherit."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # It has ended.
            if mark.encode() in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                found.append(Process(pid=folder.name, command=command))
    return found


def free_port() -> int:
    """Return a port at which nothing listens, and which the system gives to no connection meanwhile, as those above."""
    while True:
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", 20_000 + secrets.randbelow(12_000)))
            return int(probe.getsockname()[1])


def prefect(*words: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *words]


class RetryingTransport(httpx.HTTPTransport):
    """Sends a request again while the answer is 503, which Prefect's server gives while its database is busy."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer: httpx.Response = wait_for(lambda: self._answer(request), what=f"{request.method} {request.url}")
        return answer

    def _answer(self, request: httpx.Request) -> httpx.Response | None:
        answer = super().handle_request(request)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            return answer
        answer.close()
        return None


def api_client(url: str) -> httpx.Client:
    """Return a client of the API of a Prefect server at `url`, which waits while the server is busy."""
    transport = RetryingTransport(verify=False)  # To load certificates takes 50 ms, and the servers speak plain HTTP.
    return httpx.Client(base_url=url, timeout=PATIENCE, transport=transport)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A Prefect server, and the environment in which a process uses it."""

    url: str
    env: dict[str, str]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call the API; return the decoded JSON, or None if it is empty."""
        with api_client(f"{self.url}/api") as client:
            answer = client.request(method, path, json=body).raise_for_status()
        return answer.json() if answer.content else None

    def run(self, *command: str, cwd: Path = ROOT) -> str:
        """Run a command, in the clone, that uses this server and must succeed; return its output."""
        done = subprocess.run(command, env=self.env, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run_deployment(self, name: str, **parameters: Any) -> None:
        """Let the deployment FLOW/NAME run now, as the UI does; a command would import Prefect anew."""
        deployment = self.call("GET", f"/deployments/name/{name}")
        self.call("POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})

    def healthy(self) -> bool:
        """Return whether the server answers."""
        try:
            return bool(self.call("GET", "/health"))
        except httpx.HTTPError:
            return False


def new_venv(folder: Path, *installs: Sequence[str | Path]) -> Path:
    """Return the interpreter of a new venv, with what each call of `uv pip install` is to install."""
    uv, python = Path(sys.executable).parent / "uv", folder / "bin" / "python"
    env = {**os.environ, "UV_SYSTEM_CERTS": "1"}  # As the Makefile has it.
    subprocess.run([uv, "--quiet", "venv", "--python", sys.executable, folder], env=env, check=True)
    for packages in installs:
        subprocess.run([uv, "--quiet", "pip", "install", "--python", python, *packages], env=env, check=True)
    return python


def new_user_env(home: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a new user: an own Prefect home, and no variable of Prefect or ours but `variables`.

    The package is importable, as after an editable install.
    """
    ours = ("PREFECT_", "EXECUTOR_ADAPTER_")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return inherited | QUICK | {"PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)} | variables


@contextmanager
def prefect_server(directory: Path, env: dict[str, str]) -> Iterator[Server]:
    """Run an empty Prefect server on a free port, with its SQLite database in `directory`; kill it in the end.

    A server that is interrupted takes seconds to end, for a database that nobody reads again. With the URL of another
    database in `env`, it uses that.
    """
    if DATABASE_VARIABLE not in env:
        create_database(directory)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    api = {"PREFECT_API_URL": f"{url}/api", "PREFECT_UI_API_URL": f"{url}/api", "PREFECT_HOME": str(directory)}
    server = Server(url=url, env=env | api)
    command = prefect("server", "start", "--host", "127.0.0.1", "--port", str(port))
    with running(command, env=server.env, cwd=directory, log=directory / "server.log", patience=0.0):
        wait_for(server.healthy, what=f"a Prefect server on {url}")
        yield server
