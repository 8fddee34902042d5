"""Prefect servers for measurements and tests: with default settings, tuned, or on PostgreSQL.

A measurement runs `apart`, in the environment that `environment` sets:

    with prefect_server("default", tmp_path) as server, server.environment():
        rate = apart(measure, ...)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from tests.benchmarks.cpu import cpu_seconds
from tests.servers import DATABASE_VARIABLE, create_database, free_port, postgresql_database
from tests.waiting import PATIENCE

Kind = Literal["default", "tuned", "postgresql"]

TUNED = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}


@dataclass(kw_only=True)
class MeasuredServer:
    """A server that can be killed and started again at any time, on the same port and database."""

    port: int
    home: Path
    variables: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def log(self) -> str:
        """Return its log."""
        return (self.home / "server.log").read_text()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self._env(), cwd=self.home, stdout=log, stderr=log, start_new_session=True
            )
        ends = time.monotonic() + PATIENCE
        while not self._answers():
            starting = self.process.poll() is None and time.monotonic() < ends
            assert starting, f"no server on port {self.port}:\n{self.log[-4000:]}"
            time.sleep(0.1)

    def kill(self, sent: signal.Signals = signal.SIGKILL) -> None:
        """Kill the server; what it had in memory is lost."""
        assert self.process is not None, "it was not started"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, sent)
        self.process.wait(timeout=PATIENCE)

    @contextmanager
    def environment(self, **more: str) -> Iterator[None]:
        """Let processes that are started in the block use this server, with their own Prefect home."""
        home = self.home / "client"
        home.mkdir(exist_ok=True)
        changed = {"PREFECT_API_URL": self.api, "PREFECT_HOME": str(home), "PREFECT_LOGGING_LEVEL": "WARNING", **more}
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})

    def post(self, path: str, body: Any) -> Any:
        """Send a request and return the decoded response; retries for ten seconds while the server is busy."""
        for _ in range(20):
            with contextlib.suppress(httpx.HTTPError):
                answer = httpx.post(f"{self.api}{path}", json=body, timeout=60)
                if answer.is_success:
                    return answer.json()
            time.sleep(0.5)
        raise AssertionError(f"no answer to POST {path}")

    def count(self, flow_run_id: str, *state_names: str) -> int:
        """Count the task runs of the flow run, in any state or in one of `state_names`."""
        body: dict[str, Any] = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
        if state_names:
            body["task_runs"] = {"state": {"name": {"any_": list(state_names)}}}
        return int(self.post("/task_runs/count", body))

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that the server has used so far."""
        assert self.process is not None, "it was not started"
        return cpu_seconds(Path(f"/proc/{self.process.pid}"))

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return bool(httpx.get(f"{self.api}/health", timeout=2).is_success)
        return False

    def _env(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        own = {"PREFECT_HOME": str(self.home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        return inherited | own | self.variables


@contextmanager
def prefect_server(kind: Kind, directory: Path, **variables: str) -> Iterator[MeasuredServer]:
    """Run an empty server, and remove its database afterwards.

    "default" is SQLite with default settings, "tuned" is SQLite with many events per transaction, and
    "postgresql" has default settings and a new database. `variables` are set for the server as well.
    """
    home = directory / f"server-{kind}"
    home.mkdir(parents=True)
    with _database(kind) as settings:
        if kind != "postgresql":
            create_database(home)
        server = MeasuredServer(port=free_port(), home=home, variables={**settings, **variables})
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def _database(kind: Kind) -> Iterator[dict[str, str]]:
    """Create the database of the server and yield its settings; drop it afterwards."""
    if kind != "postgresql":
        yield TUNED if kind == "tuned" else {}
        return
    with postgresql_database(f"prefect_{uuid.uuid4().hex[:12]}") as url:
        yield {DATABASE_VARIABLE: url}
