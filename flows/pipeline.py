"""The pipeline: collect from every tool, process the rows, report.

    python flows/pipeline.py [config.yaml]

Without PREFECT_API_URL the run starts an embedded Prefect server. Exit codes: 0, all jobs completed; 1, a job failed
(the results of the others are kept); 2, the configuration is wrong (nothing was started); 130, the run was interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from flows.environment import prepare

    prepare()

from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings

from executor_adapter.config import load_config
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.monitoring import ProgressBar, ProgressCounts
from tasks.collection import collect
from tasks.options import select_tools
from tasks.processing import process
from tasks.reporting import JobsFailedError, Run, run_name


@flow(name="pipeline", flow_run_name=run_name)
def pipeline_flow(config: str | None = None) -> None:
    """Collect from every configured tool, process the rows and report.

    Args:
        config: The path of the configuration file, on the machine that runs the flow. Empty: the file that
            EXECUTOR_ADAPTER_CONFIG names, or config.yaml in the flow's working directory.

    Raises:
        ConfigurationError: the configuration is wrong; nothing was started.
        JobsFailedError: a job failed or rows were lost; the results of the other jobs are kept.
    """
    settings = load_config(config)
    run = Run(settings, select_tools(settings))
    collect(run)
    run.finish(process(run))


def start_embedded_server() -> None:
    """Start the server that the flow will use, and show on a terminal that this is what takes time."""
    waiting = ProgressCounts(note="it creates its database first")
    with ProgressBar("Prefect server", lambda: waiting, summary=False), get_client(sync_client=True) as client:
        client.api_healthcheck()


def main(arguments: list[str]) -> int:
    """Run the flow once and return the exit code."""
    config = arguments[0] if arguments else None
    try:
        select_tools(load_config(config))
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        if not get_current_settings().api.url:
            print("starting an embedded Prefect server; set PREFECT_API_URL to use a running one", flush=True)
            start_embedded_server()
        with tags("pipeline"):
            pipeline_flow(config)
    except JobsFailedError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: running jobs were stopped, and finished work is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
