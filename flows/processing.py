"""Processing alone: what lies in the lake and was not processed yet."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prefect import flow

from executor_adapter.config.settings import load_config
from tasks.options import check_tools
from tasks.processing import process
from tasks.reporting import Run, run_name


@flow(name="processing", flow_run_name=run_name)
def processing_flow(tools: list[str] | None = None, config: str | None = None) -> None:
    """Process what was collected from `tools`, or from all that the configuration describes; `config` is its file.

    Raises:
        ConfigurationError: the configuration is wrong; nothing was started.
        JobsFailed: a job failed, or rows got lost; what the others processed is kept.
    """
    settings = load_config(config)
    run = Run(settings, check_tools(settings, tools))
    run.finish(process(run))


if __name__ == "__main__":
    processing_flow()
