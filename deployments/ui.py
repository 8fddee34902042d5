"""Opens Prefect's UI at the last run of the pipeline.

    python deployments/ui.py [--port 4200]

With PREFECT_API_URL the UI of that server is used. Without it, this starts a server on the database of the embedded
one, on that port or, if it is in use, a free one. Ctrl-C or SIGTERM stops the server.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from executor_adapter.config import redacted
from executor_adapter.monitoring import ProgressBar, ProgressCounts

HOST = "127.0.0.1"
START_TIMEOUT = 60.0
DEFAULTS = {
    # Write many events in one transaction. The default of one per event falls behind.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def last_run_page(api: str) -> str:
    """Return the UI path of the last run of the pipeline that a server has; that of the list of runs without one.

    Raises:
        SystemExit: the server does not answer.
    """
    of_pipeline = FlowFilter(name=FlowFilterName(any_=["pipeline"]))
    try:
        with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
            runs = client.read_flow_runs(flow_filter=of_pipeline, sort=FlowRunSort.START_TIME_DESC, limit=1)
    except httpx.HTTPError as error:
        way_out = "start the server, or unset PREFECT_API_URL for one of this script's own"
        why = redacted(str(error))  # It names the address, which may have a password.
        raise SystemExit(f"the Prefect server of PREFECT_API_URL does not answer: {why}: {way_out}") from None
    return f"/runs/flow-run/{runs[0].id}" if runs else "/runs"


def free_port(preferred: int) -> int:
    """Return `preferred` if it is free, else a port that the system picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no port is free on {HOST}")


@contextmanager
def server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Prefect server; yields its process once it answers, and terminates it when the block ends.

    Raises:
        SystemExit: the server ended, or does not answer within a minute.
    """
    # The UI in the browser calls the address that the server is given here, else port 4200.
    env = DEFAULTS | os.environ | {"PREFECT_UI_API_URL": f"http://{HOST}:{port}/api"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        starting = ProgressCounts(note=f"starting on port {port}")
        with ProgressBar("Prefect server", lambda: starting, summary=False):
            wait_until_healthy(process, port)
        yield process
    finally:
        process.terminate()
        process.wait()


def wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the server answers.

    Raises:
        SystemExit: the server ended, or does not answer within a minute.
    """
    ends = time.monotonic() + START_TIMEOUT
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise SystemExit(f"the Prefect server ended with exit code {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/api/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise SystemExit(f"the Prefect server does not answer on port {port} after {START_TIMEOUT:.0f} s")


def show(url: str) -> None:
    """Print the address, and open it in a browser if there is a screen."""
    print(url, flush=True)
    if sys.platform in {"darwin", "win32"} or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(url)


def main(arguments: list[str]) -> None:
    """Show the last run, on the configured server or on one of our own until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Open Prefect's UI at the last run of the pipeline.")
    parser.add_argument("--port", type=int, default=4200, help="port of the server that is started (default: 4200)")
    options = parser.parse_args(arguments)
    settings = get_current_settings()
    if settings.api.url:
        show(f"{settings.ui_url}{last_run_page(settings.api.url)}")
        return
    port = free_port(options.port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with server(port) as process:
        show(f"http://{HOST}:{port}{last_run_page(f'http://{HOST}:{port}/api')}")
        print("Ctrl-C stops the server", flush=True)
        try:
            process.wait()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main(sys.argv[1:])
