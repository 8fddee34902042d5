"""`pipeline ...`: writes the files of a new pipeline, runs it, shows how its tables are, and makes them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor_adapter.cli.checks import project_modules
from executor_adapter.cli.output import JsonOption, clock_time, console, print_error, print_json, print_rows, seconds
from executor_adapter.cli.stores import ConfigOption
from executor_adapter.config import load_config
from executor_adapter.exceptions import ConfigurationError, JobError

if TYPE_CHECKING:
    from executor_adapter.pipeline import ConfiguredTable

app = typer.Typer(help="Collect and process the tables that the configuration describes.", no_args_is_help=True)

MAX_ROWS = 1_000
"""Rejected rows that are shown to people."""

TableName = Annotated[str, typer.Argument(metavar="TABLE", help="A table as tool.table, or a tool: all of its tables.")]
WindowOption = Annotated[str | None, typer.Option("--window", "-w", help="One window of it; default: all.")]
Since = Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="The first day.")]
Until = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The first day after it; default: now.")]


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

    Modules that the configuration names are found in the current directory and in that of FILE too, after all that is
    installed: a file there cannot stand in for a package. Without PREFECT_API_URL the run starts an embedded Prefect
    server.
    """
    _run("pipeline_flow", config_file)


@app.command()
def status(config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show of each table when it was last collected, how late it is, its rows, and the windows that it lacks."""
    with _tables(config_file) as tables:
        from executor_adapter.pipeline import status_of

        _show([status_of(each) if as_json else _for_people(**status_of(each)) for each in tables], as_json)


def _for_people(collected_at: str | None, late_seconds: float | None, missing: Sequence[str], **rest: Any) -> Any:
    at = "never" if collected_at is None else clock_time(datetime.fromisoformat(collected_at).timestamp())
    lacks = f"{missing[0]} and {len(missing) - 1} more" if missing[1:] else "".join(missing)
    return {"table": rest.pop("table"), "collected": at, "late": seconds(late_seconds), **rest, "missing": lacks}


@app.command()
def windows(table: TableName, config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show what became of the rows of each window, and of each delivery with rows that do not fit."""
    with _tables(config_file, table) as tables:
        from executor_adapter.pipeline import balances

        _show([{"table": each.full_name, **asdict(one)} for each in tables for one in balances(each)], as_json)


@app.command()
def rejects(
    table: TableName, window: WindowOption = None, config_file: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show why rows were rejected, by rule; of a window, or of a delivery such as a file, the rows themselves."""
    with _tables(config_file, table) as tables:
        from executor_adapter.pipeline import reject_reasons, rejected_rows

        if window is None:
            reasons = reject_reasons(tables).most_common()
            found = iter([{"table": name, "rows": rows, "reason": reason} for (name, reason), rows in reasons])
        else:
            found = rejected_rows(tables, window)
        _show(list(islice(found, None if as_json else MAX_ROWS)), as_json, more=sum(1 for _ in found))


def _show(found: Sequence[dict[str, Any]], as_json: bool, more: int = 0) -> None:
    if as_json:
        print_json(found)
    elif found:
        print_rows([name.upper() for name in found[0]], [list(each.values()) for each in found])
    if more:
        console().print(f"and {more:,} more: --json shows all", style="dim")


@app.command()
def backfill(table: TableName, since: Since, until: Until = None, config_file: ConfigOption = None) -> None:
    """Collect a range of days again, also of files, and process it."""
    _run("pipeline_flow", config_file, tools=[table], since=since.date(), until=until and until.date())


@app.command()
def reprocess(table: TableName, window: WindowOption = None, config_file: ConfigOption = None) -> None:
    """Process a table, or one window of it, again, although its rows and its steps are as before."""
    _run("processing_flow", config_file, tools=[table], again=True, window=window)


@app.command()
def rebuild(table: TableName, config_file: ConfigOption = None) -> None:
    """Make a table anew from its landings, as after a change of its types, and process it. No source is asked.

    A table that cannot be made anew stops no other: 1, there was one, or a job failed.
    """
    code = 0
    with _tables(config_file, table) as tables:
        from executor_adapter.pipeline import import_references, rebuild_table

        for problem in import_references(tables):
            raise problem
        for each in tables:
            try:
                gave = "landings: {landings:,}, rows: {rows:,}, rejected: {rejected:,}".format(**rebuild_table(each))
                console().print(f"{each.full_name}: made anew, {gave}", soft_wrap=True)
            except JobError as error:
                print_error(f"{each.full_name}: {error}")
                code = 1
    _run("processing_flow", config_file, code, tools=[table])


def _run(flow: str, config_file: Path | None, code: int = 0, **parameters: Any) -> None:
    with _explained(), project_modules(config_file):
        from executor_adapter.pipeline.flows import run_pipeline

        raise typer.Exit(run_pipeline(None if config_file is None else str(config_file), flow, **parameters) or code)


@contextmanager
def _tables(config_file: Path | None, name: str | None = None) -> Iterator[list[ConfiguredTable]]:
    """Yield the tables that are called so, or all of them."""
    with _explained(), project_modules(config_file):
        from executor_adapter.pipeline import select_tables

        yield select_tables(load_config(config_file), None if name is None else [name])


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("pyarrow", "pandas", "duckdb", "fsspec", "httpx"):
            raise
        said = f"the pipeline needs {error.name}: pip install 'prefect-executor-adapter[pipeline]'"
        raise ConfigurationError(said) from None
