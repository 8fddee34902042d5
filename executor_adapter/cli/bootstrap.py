"""`prefect bootstrap`: sets up the Prefect server that the deployments run on."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Annotated

import typer

from executor_adapter.cli.output import JsonOption, print_json, print_note, print_rows
from executor_adapter.cli.prefect import reaching_server
from executor_adapter.cli.stores import ConfigOption
from executor_adapter.config import load_config
from executor_adapter.terminal import SafeText

SETUP = "executor_adapter.prefect.setup"
"""The package's name, not an import, because only `executor_adapter.prefect` may import Prefect."""


def bootstrap(
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="What to create, as YAML; default: everything.")
    ] = None,
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Create the work pool, queues, limits, variables, blocks and automations that deployments need.

    It can be run again at any time: what is there already stays as it is, and what people set by hand is kept.
    """
    module = importlib.import_module(f"{SETUP}.bootstrap")
    plans = importlib.import_module(f"{SETUP}.plan")
    if note := module.note_on_server():
        print_note(SafeText(note))
    plan = plans.BootstrapPlan() if file is None else plans.read_plan(file)
    with reaching_server(module.UNREACHABLE_ERRORS):
        changes = module.bootstrap(plan, settings=load_config(config), dry_run=dry_run)
    if as_json:
        print_json([dataclasses.asdict(each) for each in changes])
    else:
        said = {"created": "would be created", "changed": "would be changed"} if dry_run else {}
        rows = [(each.kind, each.name, said.get(each.outcome, str(each.outcome)), each.detail) for each in changes]
        print_rows(("KIND", "NAME", "", "DETAIL"), rows)
