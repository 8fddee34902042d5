"""`pipeline init|run`: writes the files of a new pipeline, and runs the one that the configuration describes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from executor_adapter.cli.checks import modules_of_this_directory
from executor_adapter.cli.output import console
from executor_adapter.cli.stores import ConfigOption
from executor_adapter.exceptions import ConfigurationError

app = typer.Typer(help="Collect and process the tables that the configuration describes.", no_args_is_help=True)


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="The folder; it is made where it is missing.")] = Path()) -> None:
    """Write a configuration, a module, a flow and a file to collect, from which your own pipeline can begin."""
    with _explained():
        from executor_adapter.pipeline import write_starter

        for path in write_starter(folder):
            console().print(f"written: {path}", soft_wrap=True)
    console().print(f"run it: cd {folder} && executor-adapter pipeline run", soft_wrap=True)


@app.command()
def run(config_file: ConfigOption = None) -> None:
    """Run the pipeline once: 0, all jobs completed; 1, a job failed; 2, the configuration is wrong; 130, interrupted.

    Modules that the configuration names are found in the current directory too, after all that is installed: a file
    there cannot stand in for a package. Without PREFECT_API_URL the run starts an embedded Prefect server.
    """
    with _explained(), modules_of_this_directory():
        from executor_adapter.pipeline.flows import run_pipeline

        code = run_pipeline([] if config_file is None else [str(config_file)])
    raise typer.Exit(code)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("pyarrow", "pandas", "duckdb", "fsspec", "httpx"):
            raise
        raise ConfigurationError(
            f"the pipeline needs {error.name}: pip install 'prefect-executor-adapter[pipeline]'"
        ) from None
