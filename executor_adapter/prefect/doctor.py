"""What `executor-adapter doctor` looks at of Prefect: the server, and how it records task runs."""

from __future__ import annotations

from collections.abc import Iterator

from prefect import __version__
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import get_current_settings

from executor_adapter.monitoring.findings import Finding, fine, warning, wrong
from executor_adapter.prefect.mirror.server_api import recorder_settings

RECORDER = "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER"
TUNED_BATCH = 50
"""A recorder that takes fewer events a transaction records some 50 task runs a second, and drops what is more."""


def checks() -> Iterator[Finding]:
    """The version, the server, and whether it would lose task runs."""
    yield fine("prefect", __version__)
    url = get_current_settings().api.url
    if url is None:
        way_out = "it ends with its flow; for more, start one: prefect server start, and set PREFECT_API_URL"
        yield warning("prefect server", "none is set: each flow starts an embedded one", way_out)
        return
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
        if error is not None:
            way_out = "start it (prefect server start), or set PREFECT_API_URL to another"
            yield wrong("prefect server", f"{url} does not answer: {type(error).__name__}: {error}", way_out)
            return
        yield _version(client, url)
        yield _recorder(client)


def _version(client: SyncPrefectClient, url: str) -> Finding:
    theirs = str(client.api_version())
    if theirs.split(".")[:2] != __version__.split(".")[:2]:
        return warning("prefect server", f"{url} is {theirs}, this is {__version__}", "let both have the same version")
    return fine("prefect server", f"{url}, {theirs}")


def _recorder(client: SyncPrefectClient) -> Finding:
    """How many events it writes in one transaction decides how many task runs a second it can record."""
    check = "task run recorder"
    try:
        recorder = recorder_settings(client)
    except Exception as error:
        return warning(check, f"the server does not say how it is set: {type(error).__name__}", _ADVICE)
    batch, interval = recorder.get("batch_size", 1), recorder.get("flush_interval", 5)
    if interval < 1:
        return wrong(
            check, f"flush_interval={interval} keeps the server busy for nothing", f"{RECORDER}_FLUSH_INTERVAL=1"
        )
    if batch < TUNED_BATCH:
        return warning(check, f"batch_size={batch}: it records about 50 task runs a second and may drop more", _ADVICE)
    return fine(check, f"batch_size={batch}, flush_interval={interval}")


_ADVICE = f"start the server with {RECORDER}_BATCH_SIZE=500 {RECORDER}_READ_BATCH_SIZE=200 {RECORDER}_FLUSH_INTERVAL=1"
