"""Environment variables for a run on an embedded Prefect server. Prefect reads them when it is imported."""

from __future__ import annotations

import os

EMBEDDED_SERVER = {
    # Write many events in one transaction. The default of one falls behind, and the server ends with the flow.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    # An integer, since 0.5 would become 0, a busy loop.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    # The first start creates the database.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The progress table shows the run on the terminal. Log records still reach the UI.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}


def prepare() -> None:
    """Set the variables that the user has not set. Call this before Prefect is imported."""
    for name, value in EMBEDDED_SERVER.items():
        os.environ.setdefault(name, value)
