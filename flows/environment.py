"""What Prefect must find in the environment when it is imported, for a run on an embedded server."""

from __future__ import annotations

import os

EMBEDDED_SERVER = {
    # One transaction for many events: the default of one each falls behind a pipeline, and the server ends with it.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",  # a whole number: 0.5 would become 0, and spin
    # Its first start makes the database.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The board tells of the run; all that is logged still reaches the UI.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}


def prepare() -> None:
    """Set what the user has not set otherwise. Prefect reads it once, so this comes before its import."""
    for name, value in EMBEDDED_SERVER.items():
        os.environ.setdefault(name, value)
