"""Runs the pipeline once from the command line, on an embedded Prefect server where no other is set."""

from __future__ import annotations

import os
import sys
from typing import Any

from executor_adapter.config import load_config, redacted
from executor_adapter.exceptions import ConfigurationError, JobError
from executor_adapter.pipeline.tables import check_range, import_references, select_tables
from executor_adapter.terminal import escaped

EMBEDDED_SERVER = {
    # Write many events in one transaction. The default of one falls behind, and the server ends with the flow.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    # An integer, since 0.5 would become 0, a busy loop.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The progress table shows the run on the terminal. Log records still reach the UI.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}


def run_pipeline(config: str | None = None, flow: str = "pipeline_flow", **parameters: Any) -> int:
    """Run a flow of the pipeline once, and return the exit code.

    Call it before Prefect is imported, since Prefect reads the environment then; what is set there stays.

    Args:
        config: the path of the configuration file, or None: see `load_config`.
        flow: the name of the flow in `executor_adapter.pipeline.flows`.
        parameters: the parameters of the flow.

    Returns:
        0, all jobs completed; 1, a job failed, or the lake cannot be read (the results of the others are kept); 2, the
        configuration is wrong (nothing was started); 130, the run was interrupted.
    """
    for name, value in EMBEDDED_SERVER.items():
        os.environ.setdefault(name, value)
    try:
        tables = select_tables(load_config(config), parameters.get("tools"))
        check_range(tables, parameters.get("since"), parameters.get("until"))
        problems = import_references(tables)
    except ConfigurationError as error:
        problems = [error]
    for problem in problems:
        print(escaped(redacted(str(problem))), file=sys.stderr)
    if problems:
        return 2
    return _run(flow, {"config": config, **parameters})


def _run(flow: str, parameters: dict[str, Any]) -> int:
    from prefect import tags
    from prefect.settings import get_current_settings

    from executor_adapter.pipeline.flows import entry
    from executor_adapter.pipeline.flows.run import JobsFailedError
    from executor_adapter.prefect import start_embedded_server

    try:
        if not get_current_settings().api.url:
            said = "the first start creates its database; set PREFECT_API_URL to use a running one"
            print(f"starting an embedded Prefect server: {said}", flush=True)
            start_embedded_server()
        with tags("pipeline"):
            getattr(entry, flow)(**parameters)
    except (JobsFailedError, JobError) as error:
        # The flow itself reads the lake, and meets what the disk or its permissions refuse.
        print(escaped(redacted(str(error))), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: running jobs were stopped, and finished work is kept", file=sys.stderr)
        return 130
    return 0
