"""Collection alone: what the tools have, landed in the lake."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prefect import flow

from executor_adapter.config.settings import load_config
from tasks.collection import collect
from tasks.options import check_tools
from tasks.reporting import Run, run_name


@flow(name="collection", flow_run_name=run_name)
def collection_flow(tools: list[str] | None = None, config: str | None = None) -> None:
    """Collect from `tools`, or from all that the configuration describes; `config` is its file.

    Raises:
        ConfigurationError: the configuration is wrong; nothing was started.
        JobsFailed: a job failed; what the others collected is kept.
    """
    settings = load_config(config)
    run = Run(settings, check_tools(settings, tools))
    collect(run)
    run.finish()


if __name__ == "__main__":
    collection_flow()
