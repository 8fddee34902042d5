"""`doctor`: finds what would make jobs fail on this machine, before they do."""

from __future__ import annotations

import importlib
import textwrap
from typing import Annotated

import typer
from rich.table import Table

from executor_adapter.cli.checks import core_checks
from executor_adapter.cli.output import JsonOption, console, print_json, without_secrets
from executor_adapter.cli.stores import ConfigOption, StoreOption
from executor_adapter.monitoring import Finding, Level, ProgressBar, ProgressCounts
from executor_adapter.terminal import SafeText

PREFECT_CHECKS = "executor_adapter.prefect.doctor"
"""The module's name, not an import, because only `executor_adapter.prefect` may import Prefect."""

MARKS = {Level.FINE: ("ok", "green"), Level.WARNING: ("warn", "yellow"), Level.WRONG: ("FAIL", "bold red")}


def doctor(
    function: Annotated[
        str | None, typer.Option("--function", metavar="MODULE:FUNCTION", help="Also check that a worker can run it.")
    ] = None,
    prefect: Annotated[bool, typer.Option("--prefect/--no-prefect", help="Also check the Prefect server.")] = True,
    store: StoreOption = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine for what would make jobs fail; exit code 1 if a check fails."""
    checked: list[Finding] = []
    with ProgressBar("doctor", lambda: ProgressCounts(note=f"{len(checked)} checks done"), summary=False):
        checked.extend(core_checks(config_file, store, function))
        if prefect:
            checked.extend(importlib.import_module(PREFECT_CHECKS).checks())
    findings = [without_secrets(finding) for finding in checked]
    if as_json:
        print_json([{"check": f.check, "level": f.level, "found": f.found, "way_out": f.way_out} for f in findings])
    else:
        _print(findings)
    if any(finding.level is Level.WRONG for finding in findings):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    screen, width = console(), max(len(finding.check) for finding in findings)
    for finding in findings:
        mark, style = MARKS[finding.level]
        found = finding.found if finding.level is Level.FINE else ""
        line = Table.grid(padding=(0, 2))
        line.add_row(SafeText(f"{mark:4}", style=style), SafeText(f"{finding.check:{width}}"), SafeText(found))
        screen.print(line)
        if not found:  # The terminal breaks these lines, not the command: what is copied from them is whole.
            text = textwrap.indent(f"{finding.found}\n{finding.way_out}", " " * 6)
            screen.print(SafeText(text), soft_wrap=True)
