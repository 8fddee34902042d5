"""`prefect`: commands on the records of the Prefect server."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from executor_adapter.cli.output import JsonOption, print_error, print_json, print_note, print_rows
from executor_adapter.terminal import SafeText

SWEEP = "executor_adapter.prefect.crashes.sweep"
"""The module's name, not an import, because only `executor_adapter.prefect` may import Prefect."""

UNREACHABLE = 3
"""Exit code if the server cannot be reached, as for a store."""


@contextlib.contextmanager
def reaching_server(errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """End the command, with the reason, if one of `errors` says that the server cannot be reached."""
    try:
        yield
    except errors as error:
        print_error(f"the Prefect server cannot be reached: {error!r}: check PREFECT_API_URL")
        raise typer.Exit(UNREACHABLE) from None


app = typer.Typer(help="Look after the records of the Prefect server.", no_args_is_help=True)


@app.command("sweep")
def sweep(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """End the task runs that are Running or Pending although their flow run has ended, for example by SIGKILL.

    They become Crashed. Task runs and flow runs that have ended stay as they are, and so do flow runs that have not.
    """
    module = importlib.import_module(SWEEP)
    with reaching_server(module.UNREACHABLE_ERRORS):
        swept = list(module.sweep(dry_run=dry_run))
    if as_json:
        print_json([dataclasses.asdict(each) for each in swept])
    elif not swept:
        print_note(SafeText("nothing to end: each task run of an ended flow run has ended"))
    else:
        print_rows(("FLOW RUN", "NAME", "STATE", "TASK RUNS", ""), list(_rows(swept, dry_run)))
    if not dry_run and not all(each.is_recorded for each in swept):
        print_error("the server has not recorded all of this: run it again")
        raise typer.Exit(1)


def _rows(swept: list[Any], dry_run: bool) -> Iterator[tuple[Any, ...]]:
    for each in swept:
        done = "would be ended" if dry_run else "ended" if each.is_recorded else "not recorded"
        yield each.flow_run_id, each.name, each.state, each.task_runs, done
