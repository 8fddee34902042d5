"""The main job: collect from every tool, process, report.

    python flows/pipeline.py [config.yaml]

Where PREFECT_API_URL is unset it brings a Prefect server of its own along. Exit code 0: all is well; 1: a job failed,
the work of the others is kept; 2: the configuration is wrong, nothing was started; 130: it was interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from flows.environment import prepare

    prepare()

from prefect import flow, tags
from prefect.settings import get_current_settings

from executor_adapter.config.settings import load_config
from executor_adapter.exceptions import ConfigurationError
from tasks.collection import collect
from tasks.options import check_tools
from tasks.processing import process
from tasks.reporting import JobsFailed, Run, run_name


@flow(name="pipeline", flow_run_name=run_name)
def pipeline_flow(config: str | None = None) -> None:
    """Collect from every tool that the configuration describes, process, and report; `config` is its file.

    Raises:
        ConfigurationError: the configuration is wrong; nothing was started.
        JobsFailed: a job failed, or rows got lost; the work of the others is kept.
    """
    settings = load_config(config)
    run = Run(settings, check_tools(settings))
    collect(run)
    run.finish(process(run))


def main(arguments: list[str]) -> int:
    """Run the flow once; the exit code."""
    config = arguments[0] if arguments else None
    try:
        check_tools(load_config(config))
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    if not get_current_settings().api.url:
        print("starting an embedded Prefect server; set PREFECT_API_URL to use one that is there", flush=True)
    try:
        with tags("pipeline"):
            pipeline_flow(config)
    except JobsFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what ran was ended, and what was done is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
