"""`tools ...`: shows the limits that hold over all executors of a store, and changes them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from executor_adapter.cli.output import JsonOption, clock_time, console, print_json, print_rows
from executor_adapter.cli.stores import ConfigOption, StoreOption, opened
from executor_adapter.cli.waits import reason_of_tool
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.job import JobStatus, ToolLimit
from executor_adapter.store import JobStore, SharedTools
from executor_adapter.terminal import SafeText

app = typer.Typer(
    help="Show and change the limits of tools, which hold over all executors of a store.", no_args_is_help=True
)

COLUMNS = ("TOOL", "LIMIT", "RATE", "RUNNING", "WAITING", "WAITS FOR", "PAUSED", "SET BY")

Tools = Annotated[list[str], typer.Argument(metavar="TOOL...", help="Names of tools, as in `tool_name` of a job.")]
Tool = Annotated[str, typer.Argument(metavar="TOOL", help="The name of a tool, as in `tool_name` of a job.")]


@app.command("list")
def list_tools(store: StoreOption = None, config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the tools of live jobs, and those of which something is set: limit, jobs that run and wait, pauses."""
    with opened_for_tools(store, config_file) as opened_store:
        found = statuses(opened_store)
    if as_json:
        print_json(found)
    elif found:
        print_rows(COLUMNS, [_row(tool) for tool in found])
    else:
        console().print(SafeText("no tools: no live job has a tool_name, and nothing is set", style="dim"))


@app.command()
def pause(tools: Tools, store: StoreOption = None, config_file: ConfigOption = None) -> None:
    """Let no executor start further jobs of these tools, until `tools resume`; jobs that run go on.

    It takes effect within two seconds. Jobs that wait keep their queue_timeout and deadline.
    """
    with opened_for_tools(store, config_file) as opened_store:
        for tool in tools:
            opened_store.pause_tool(tool, _who())
            console().print(f"{tool}: paused; resume it with `tools resume {tool}`")


@app.command()
def resume(tools: Tools, store: StoreOption = None, config_file: ConfigOption = None) -> None:
    """Let executors start jobs of paused tools again."""
    with opened_for_tools(store, config_file) as opened_store:
        for tool in tools:
            opened_store.pause_tool(tool, None)
            console().print(f"{tool}: resumed")


@app.command()
def limit(
    tool: Tool,
    max_concurrent: Annotated[int | None, typer.Option("--max-concurrent", "-n", help="Attempts at once.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", "-r", help="Starts a second, on average.")] = None,
    burst: Annotated[int, typer.Option("--burst", "-b", help="Starts at once after a pause.")] = 1,
    reset: Annotated[bool, typer.Option("--reset", help="Let the executors' own limits hold again.")] = False,
    store: StoreOption = None,
    config_file: ConfigOption = None,
) -> None:
    """Set the limit of a tool for all executors; it wins over their own ones. Attempts beyond it run to their end."""
    if reset == (max_concurrent is not None or rate is not None):
        raise ConfigurationError("give --max-concurrent, --rate or both, or else --reset alone")
    try:
        new = None if reset else ToolLimit(max_concurrent=max_concurrent, rate=rate, burst=burst)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    with opened_for_tools(store, config_file) as opened_store:
        opened_store.limit_tool(tool, new, _who())
    shown = "the executors' own limits hold again" if new is None else f"limited to {_limit_text(new)}"
    console().print(f"{tool}: {shown}")


@contextmanager
def opened_for_tools(store: Any, config: Any) -> Iterator[JobStore]:
    """Open the store as `opened` does.

    Raises:
        ConfigurationError: The store does not hold limits of tools for several executors.
    """
    with opened(store, config) as opened_store:
        if not opened_store.shares_tools:
            raise ConfigurationError(f"{opened_store.url} holds no limits of tools: give a store in a database")
        yield opened_store


def statuses(store: JobStore) -> list[dict[str, Any]]:
    """Return what is known of each tool, by name, as `tools list --json` prints it."""
    shared, live = store.tools(), store.live_by_tool()
    set_for = {name for name, control in shared.controls.items() if not control.is_empty}
    names = {name for name, _ in live} | {use.tool_name for use in shared.uses} | set_for
    return [_status(name, shared, live) for name in sorted(names)]


def _status(name: str, shared: SharedTools, live: dict[tuple[str, JobStatus], int]) -> dict[str, Any]:
    control = shared.control(name)
    uses = [use for use in shared.uses if use.tool_name == name]
    own_limits = sorted({use.max_concurrent for use in uses if use.max_concurrent is not None})
    own_rates = sorted({use.rate for use in uses if use.rate is not None})
    most = own_limits[0] if len(own_limits) == 1 else None  # Of several, `own_limits` has all.
    limit = control.limit or ToolLimit(max_concurrent=most, rate=own_rates[0] if own_rates else None)
    waiting = sum(live.get((name, status), 0) for status in (JobStatus.PENDING, JobStatus.RETRYING))
    reason = reason_of_tool(name, shared) or "free workers of its hosts, or the time of a retry"
    return {
        "tool": name,
        "max_concurrent": limit.max_concurrent,
        "rate": limit.rate,
        "own_limits": own_limits,
        "limited_by": control.limited_by,
        "running": live.get((name, JobStatus.RUNNING), 0),
        "waiting": waiting,
        "waits_for": reason if waiting else None,
        "executors": len(uses),
        "paused": control.paused_by is not None,
        "paused_by": control.paused_by,
        "paused_at": control.paused_at,
    }


def _row(tool: dict[str, Any]) -> list[Any]:
    several = "" if tool["limited_by"] else "/".join(map(str, tool["own_limits"]))
    paused = f"by {tool['paused_by']} at {clock_time(tool['paused_at'])}" if tool["paused"] else ""
    return [
        tool["tool"],
        several if tool["max_concurrent"] is None else tool["max_concurrent"],
        "" if tool["rate"] is None else f"{tool['rate']:g}/s",
        *(tool[name] for name in ("running", "waiting", "waits_for")),
        SafeText(paused, style="yellow"),
        tool["limited_by"],
    ]


def _limit_text(limit: ToolLimit) -> str:
    parts = [] if limit.max_concurrent is None else [f"{limit.max_concurrent} at once"]
    return " and ".join([*parts, *([] if limit.rate is None else [f"{limit.rate:g} starts a second"])])


def _who() -> str:
    """Return who runs this command, as user@machine."""
    return f"{os.environ.get('USER', 'unknown')}@{socket.gethostname()}"
