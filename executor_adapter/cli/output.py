"""How commands print: tables for people, JSON for programs; colours only where a terminal shows them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from executor_adapter.job import JobStatus

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

WIDE = 200
"""Columns where the output is no terminal: what reads it had better get it all."""

STYLES: dict[JobStatus, str] = {
    JobStatus.PENDING: "dim",
    JobStatus.RUNNING: "cyan",
    JobStatus.RETRYING: "yellow",
    JobStatus.COMPLETED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "magenta",
}


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def print_json(value: Any) -> None:
    """As one document: indented for a terminal, on one line else."""
    indent = 2 if sys.stdout.isatty() else None
    typer.echo(json.dumps(value, indent=indent, ensure_ascii=False, default=str))


def print_pairs(pairs: Mapping[str, Any]) -> None:
    """One line for each, values aligned."""
    table = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        table.add_row(Text(name, style="dim"), value if isinstance(value, Text) else Text(str(value)))
    console().print(table)


def new_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    return table


LEAST = 16
"""Columns of the screen that the last column of a table gets, whatever has to be left out for it."""


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table of one line a row. Where the terminal is narrow the last column is cut, and those before it are left out
    from the right, never the first two; columns without content are left out too."""
    screen = console()
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max([len(name), *(row[at].cell_len for row in texts)]) for at, name in enumerate(columns)]
    kept = [at for at in range(len(columns)) if any(row[at].plain for row in texts)]
    while len(kept) > 3 and sum(widths[at] + 2 for at in kept[:-1]) + min(LEAST, widths[kept[-1]]) > screen.width:
        del kept[-2]
    table = new_table(*(columns[at] for at in kept))
    for at, column in zip(kept[:-1], table.columns[:-1], strict=True):
        column.min_width = widths[at]
    table.columns[-1].max_width = max(1, screen.width - sum(widths[at] + 2 for at in kept[:-1]))
    for row in texts:
        table.add_row(*(row[at] for at in kept))
    screen.print(table)


def _text(cell: Any) -> Text:
    return cell if isinstance(cell, Text) else Text("" if cell is None else str(cell))


def complain(error: object, code: int) -> int:
    """Say on stderr, in one line, why it could not be done; the exit code."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"executor-adapter: {error}", style="red"))
    return code


def status_text(status: JobStatus, *, quarantined: bool = False) -> Text:
    text = Text(str(status), style=STYLES[status])
    return text.append(" (quarantined)", style="red") if quarantined else text


def clock_time(timestamp: float | None) -> str:
    """Local, with the date where it is not today's."""
    if timestamp is None:
        return ""
    at = datetime.fromtimestamp(timestamp)
    return at.strftime("%H:%M:%S" if at.date() == datetime.now().date() else "%Y-%m-%d %H:%M")


def seconds(value: float | None) -> str:
    """A length of time: 0.42 s, 12.3 s, 3 min 20 s, 2 h 05 min."""
    if value is None:
        return ""
    if value < 10:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
