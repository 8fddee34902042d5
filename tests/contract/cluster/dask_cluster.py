"""A real Dask cluster of the tests: a scheduler and workers, each a process of its own, on 127.0.0.1."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[3]
QUIET = {"DASK_DISTRIBUTED__DASHBOARD__ENABLED": "False", "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "warning"}


class DaskCluster:
    """A scheduler, and workers that can be started and killed one by one."""

    def __init__(self, folder: Path, options: Sequence[str] = (), security: Any = None) -> None:
        self.folder = folder
        self._options = options
        self._security = security
        self.address = ""
        self.workers: list[subprocess.Popen[bytes]] = []
        self._scheduler: subprocess.Popen[bytes] | None = None

    def start_scheduler(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Start the scheduler, and wait until it can be reached."""
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        where = ["--host", host, "--port", str(port), "--no-dashboard", "--scheduler-file", str(file)]
        self._scheduler = self._run("scheduler", where)
        until = time.monotonic() + 200
        while not self.address or not file.exists():
            with contextlib.suppress(OSError, ValueError):
                self.address = json.loads(file.read_text())["address"]
            assert time.monotonic() < until, (self.folder / "scheduler.log").read_text()
            time.sleep(0.05)

    def start_worker(
        self, threads: int = 2, host: str = "127.0.0.1", inside: Sequence[str] = (), resources: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start a worker without a nanny; it may run so many leases at once.

        `inside`: the start of a command that runs on the worker's host, if it is another one. `resources`: such as
        "GPU=1".
        """
        arguments = [self.address, "--host", host, "--nthreads", str(threads), "--no-nanny", "--no-dashboard"]
        arguments += ["--resources", resources] if resources else []
        worker = self._run("worker", [*arguments, "--local-directory", str(self.folder)], inside)
        self.workers.append(worker)
        return worker

    def wait_for_workers(self, count: int) -> None:
        """Wait until the scheduler knows so many workers, if any."""
        if not count:
            return
        import distributed  # Not above: each worker process of the pools' tests imports this module.

        engine: Any = distributed
        with engine.Client(self.address, set_as_default=False, security=self._security) as client:
            client.wait_for_workers(count, timeout=PATIENCE)

    def stop_scheduler(self) -> None:
        """Kill the scheduler."""
        assert self._scheduler is not None
        _kill([self._scheduler])

    def stop(self) -> None:
        """Kill all processes of the cluster."""
        _kill([*self.workers, *([] if self._scheduler is None else [self._scheduler])])

    def settings(self) -> str:
        """Return the value of EXECUTOR_ADAPTER_CLUSTER__DASK for this cluster."""
        return json.dumps({"address": self.address})

    def _run(self, what: str, arguments: Sequence[str], inside: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        with (self.folder / f"{what}.log").open("ab") as log:
            command = [*inside, sys.executable, "-m", "dask", what, *arguments, *self._options]
            environment = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT)}
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait(PATIENCE)


@contextlib.contextmanager
def dask_cluster(
    folder: Path, workers: int = 2, threads: int = 2, options: Sequence[str] = (), security: Any = None
) -> Iterator[DaskCluster]:
    """Run a cluster while the block lasts. `options`: of its processes. `security`: of the client that waits for it."""
    cluster = DaskCluster(folder, options, security)
    try:
        cluster.start_scheduler()
        for _ in range(workers):
            cluster.start_worker(threads)
        cluster.wait_for_workers(workers)
        yield cluster
    finally:
        cluster.stop()
