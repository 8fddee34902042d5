"""The processing flow: processes the rows in the lake that are not processed yet."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prefect import flow

from executor_adapter.config import load_config
from flows.parameters import ToolName
from tasks.options import select_tools
from tasks.processing import process
from tasks.reporting import Run, run_name


@flow(name="processing", flow_run_name=run_name)
def processing_flow(tools: list[ToolName] | None = None, config: str | None = None) -> None:
    """Process the rows in the lake that are not processed yet.

    Args:
        tools: The tools whose rows are processed. Empty: all that are configured.
        config: The path of the configuration file, on the machine that runs the flow. Empty: the file that
            EXECUTOR_ADAPTER_CONFIG names, or config.yaml in the flow's working directory.

    Raises:
        ConfigurationError: the configuration is wrong; nothing was started.
        JobsFailedError: a job failed or rows were lost; the results of the other jobs are kept.
    """
    settings = load_config(config)
    run = Run(settings, select_tools(settings, tools))
    run.finish(process(run))


if __name__ == "__main__":
    processing_flow()
