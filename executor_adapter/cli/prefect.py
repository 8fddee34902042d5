"""`prefect`: commands on the records of the Prefect server."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from executor_adapter.cli.output import JsonOption, print_error, print_json, print_note, print_rows
from executor_adapter.cli.stores import ConfigOption
from executor_adapter.config import load_config
from executor_adapter.terminal import SafeText

PREFECT = "executor_adapter.prefect"
"""The name of a package, not an import, because only that package may import Prefect."""

UNREACHABLE = 3
"""Exit code if the server cannot be reached, as for a store."""


@contextlib.contextmanager
def reaching_server() -> Iterator[None]:
    """End the command, with the reason, if the server cannot be reached, or is in trouble."""
    import httpx  # Prefect needs it; a program without Prefect does not load it.

    try:
        yield
    except httpx.HTTPError as error:
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
    module = importlib.import_module(PREFECT)
    with reaching_server():
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


@app.command()
def bootstrap(
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="What to create, as YAML; default: everything.")
    ] = None,
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Create the work pool, queues, limits, variables, blocks and automations that deployments need.

    It creates what is missing, sets what the file declares, and says both. It can be run again at any time. What the
    file does not name stays as people have set it.
    """
    module = importlib.import_module(PREFECT)
    plan = module.BootstrapPlan() if file is None else module.read_plan(file)
    with reaching_server():
        changes = module.bootstrap(plan, settings=load_config(config), dry_run=dry_run)
    if as_json:
        print_json([dataclasses.asdict(each) for each in changes])
    else:
        said = {"created": "would be created", "changed": "would be changed"} if dry_run else {}
        rows = [(each.kind, each.name, said.get(each.outcome, str(each.outcome)), each.detail) for each in changes]
        print_rows(("KIND", "NAME", "", "DETAIL"), rows)
