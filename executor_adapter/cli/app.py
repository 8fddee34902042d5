"""Puts the commands together, and turns the errors that they raise into messages and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version as version_of
from typing import Annotated, Any

import typer

from executor_adapter.cli import config, doctor, jobs, new, pipeline, prefect, run, stats, tools, watch
from executor_adapter.cli.output import (
    JsonOption,
    prepare_output,
    print_error,
    print_json,
    print_pairs,
)
from executor_adapter.cli.stores import NoSuchJobError
from executor_adapter.exceptions import ConfigurationError, InvalidJobError, JobError
from executor_adapter.store import StoreUnavailableError

DISTRIBUTION = "prefect-executor-adapter"

app = typer.Typer(
    name="executor-adapter",
    help="Jobs that end when they must, fail alone, retry by a policy and are always accounted for.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
jobs.app.command("watch")(watch.watch)
app.add_typer(jobs.app, name="jobs")
app.command("new")(new.new)
app.command("stats")(stats.stats)
app.command("run")(run.run)
app.add_typer(config.app, name="config")
app.command("doctor")(doctor.doctor)
app.add_typer(tools.app, name="tools")
app.add_typer(prefect.app, name="prefect")
app.add_typer(pipeline.app, name="pipeline")


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Print the versions of this package, of what it is built on, and of Python."""
    versions = {name: version_of(name) for name in (DISTRIBUTION, "prefect", "pydantic")}
    versions["python"] = sys.version.split()[0]
    if as_json:
        print_json(versions)
    else:
        print_pairs(versions)


def _print_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the versions, and exit.")
    ] = False,
) -> None:
    """Hold the options that need no command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    prepare_output()
    code = _run(arguments)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()  # Where the interpreter fails to, it exits with 120.
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if not code and not isinstance(error, BrokenPipeError):  # Else its reader has left, as in `... | head -1`.
                print_error(error)
                code = 1
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> Any:
    """Run one command, report what went wrong, and return the exit code."""
    try:
        app(args=arguments)
    except SystemExit as ended:
        return ended.code
    except (NoSuchJobError, JobError, OSError) as error:  # An OSError: the disk with the output is full, for example.
        print_error(error)
        return 1
    except (ConfigurationError, InvalidJobError) as error:
        print_error(error)
        return 2
    except UnicodeEncodeError as error:
        print_error(f"a store cannot hold the text {error.object!a}: give valid Unicode")
        return 2
    except StoreUnavailableError as error:
        print_error(error)
        return 3
    return 0
