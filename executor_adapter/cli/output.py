"""How commands print: tables for people, JSON for programs; colours only where a terminal shows them."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import NoneType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from executor_adapter.job.status import JobStatus

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
    """As one document: indented for a terminal, on one line else; valid JSON whatever `value` holds, see `plain`."""
    indent, found = 2 if sys.stdout.isatty() else None, plain(value)
    text = json.dumps(found, indent=indent, ensure_ascii=False)
    typer.echo(text if _can_be_printed(text) else json.dumps(found, indent=indent))


def _can_be_printed(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: keys that it has no word for as text, NaN and the infinities as null (as JavaScript
    has it), anything else as its `str`. What cannot be written so, since it holds itself or its own code fails, is
    its `repr`."""
    try:
        found = _in_words(value)
        json.dumps(found)
    except Exception:
        return shown(value)
    return found


def _in_words(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key if isinstance(key, _KEYS) else str(key): _in_words(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_in_words(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


_KEYS = (str, int, float, NoneType)
"""What JSON's keys are made of."""


def shown(value: Any) -> str:
    """Its `repr`, or its class where that fails."""
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__}: its repr fails>"


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


def print_no_more() -> None:
    """Nobody reads it: what is not written yet, and what is printed from now on, goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


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
