"""The commands, put together; and what becomes of the errors that they let pass."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version as version_of

import typer

from executor_adapter.cli import config, doctor, jobs, run, stats, watch
from executor_adapter.cli.output import JsonOption, complain, print_json, print_no_more, print_pairs
from executor_adapter.cli.stores import NoSuchJob
from executor_adapter.exceptions import ConfigurationError, InvalidJobError
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
app.command("stats")(stats.stats)
app.command("run")(run.run)
app.add_typer(config.app, name="config")
app.command("doctor")(doctor.doctor)


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Say which version this is, and of what it is built on."""
    found = {name: version_of(name) for name in (DISTRIBUTION, "prefect", "pydantic")}
    found["python"] = sys.version.split()[0]
    if as_json:
        print_json(found)
    else:
        print_pairs(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and exit as it says."""
    _ready_to_print()
    try:
        app(args=arguments)
    except NoSuchJob as error:
        code = complain(error, 1)
    except (ConfigurationError, InvalidJobError) as error:
        code = complain(error, 2)
    except UnicodeEncodeError as error:
        code = complain(f"{error.object!a} is no text that a store can hold", 2)
    except StoreUnavailableError as error:
        code = complain(error, 3)
    except OSError as error:  # a full disk, say, where it is to be printed
        code = complain(error, 1)
        print_no_more()
    else:
        code = 0
    sys.exit(code)


def _ready_to_print() -> None:
    """Print whatever there is to print: escaped where the terminal has no such letter, nowhere where that is closed."""
    for stream in ("stdout", "stderr"):
        found = getattr(sys, stream)
        if found is None:
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
        elif isinstance(found, io.TextIOWrapper):
            found.reconfigure(errors="backslashreplace")
