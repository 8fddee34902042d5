"""The collection flow: copies rows from the tools into the lake."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prefect import flow

from executor_adapter.config import load_config
from tasks.collection import collect
from tasks.options import select_tools
from tasks.reporting import Run, run_name


@flow(name="collection", flow_run_name=run_name)
def collection_flow(tools: list[str] | None = None, config: str | None = None) -> None:
    """Collect from `tools`, or from all configured tools; `config` is the configuration file.

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
