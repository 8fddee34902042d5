"""Checks Prefect for `executor-adapter doctor`: the server, and how it records task runs."""

from __future__ import annotations

from collections.abc import Iterator

from prefect import __version__
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import get_current_settings

from executor_adapter.monitoring import Finding, fine, warning, wrong
from executor_adapter.prefect.mirror.server import server_trouble

RECORDER = "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER"
MIN_BATCH_SIZE = 50
"""A recorder with fewer events in each transaction records about 50 task runs a second, and drops further ones."""


def checks() -> Iterator[Finding]:
    """Check the version, the server, and whether the server would lose task runs."""
    yield fine("prefect", __version__)
    url = get_current_settings().api.url
    if url is None:
        remedy = "to keep its records, run prefect server start, and set PREFECT_API_URL"
        yield warning("prefect server", "PREFECT_API_URL is not set: each flow starts an embedded server", remedy)
        return
    if (trouble := server_trouble()) is not None:
        remedy = "start it (prefect server start), or set PREFECT_API_URL to another"
        yield wrong("prefect server", trouble, remedy)
        return
    with get_client(sync_client=True) as client:
        yield fine("prefect server", f"{url}, {client.api_version()}")
        yield _recorder(client)


def _recorder(client: SyncPrefectClient) -> Finding:
    """Check how many events the recorder writes in one transaction: this limits the task runs it records a second."""
    check = "task run recorder"
    try:
        recorder = client.request("GET", "/admin/settings").json()["server"]["services"]["task_run_recorder"]
    except Exception as error:
        return warning(check, f"cannot read the server's settings: {type(error).__name__}", _ADVICE)
    batch = recorder.get("batch_size", 1)
    if batch < MIN_BATCH_SIZE:
        found = f"batch_size={batch}: the server records about 50 task runs a second and may drop further ones"
        return warning(check, found, _ADVICE)
    return fine(check, f"batch_size={batch}")


_ADVICE = f"start the server with {RECORDER}_BATCH_SIZE=500 {RECORDER}_READ_BATCH_SIZE=200 {RECORDER}_FLUSH_INTERVAL=1"
