"""The collection flow: copies rows from the tools into the lake."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prefect import flow

from executor_adapter.config import load_config
from flows.parameters import ToolName
from tasks.collection import collect
from tasks.options import select_tools
from tasks.reporting import Run, run_name


@flow(name="collection", flow_run_name=run_name)
def collection_flow(tools: list[ToolName] | None = None, config: str | None = None) -> None:
    """Collect rows from the tools into the lake.

    Args:
        tools: The tools to collect from. Empty: all that are configured.
        config: The path of the configuration file, on the machine that runs the flow. Empty: the file that
            EXECUTOR_ADAPTER_CONFIG names, or config.yaml in the flow's working directory.

    Raises:
        ConfigurationError: the configuration is wrong; nothing was started.
        JobsFailedError: a job failed; the rows that other jobs collected are kept.
    """
    settings = load_config(config)
    run = Run(settings, select_tools(settings, tools))
    collect(run)
    run.finish()


if __name__ == "__main__":
    collection_flow()
