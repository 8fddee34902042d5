"""The output of commands: tables for people, JSON for programs, colours on a terminal only."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from pydantic_core import to_jsonable_python
from rich.table import Table

from executor_adapter.config import redacted
from executor_adapter.job import JobStatus
from executor_adapter.monitoring import Finding
from executor_adapter.terminal import SafeConsole, SafeText, escaped

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

PIPE_WIDTH = 200
"""Columns of output that goes into a pipe or a file, so that it holds whole lines."""

MIN_LAST_COLUMN = 16
"""Columns of the screen that the last column of a table keeps; others are left out for it."""

ESSENTIAL_COLUMNS = 3
"""The first columns of a table, which are not left out."""

CUT = "…"
"""Stands for what is left out of an id."""

MIN_ID_END = 8
"""Letters of an id that are shown at least: the last six are a counter, see `executor_adapter.job.ids`."""

STYLES: dict[JobStatus, str] = {
    JobStatus.PENDING: "dim",
    JobStatus.RUNNING: "cyan",
    JobStatus.RETRYING: "yellow",
    JobStatus.COMPLETED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "magenta",
}


def console() -> SafeConsole:
    """Return a console for stdout."""
    return SafeConsole(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_json(value: Any) -> None:
    """Print one JSON document in ASCII: indented on a terminal, on one line otherwise."""
    text = json.dumps(plain(value), indent=2 if sys.stdout.isatty() else None)
    typer.echo(text.replace("\x7f", "\\u007f"))  # The one control character that `json` does not escape.


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: NaN and infinities are None, and other objects their `str`.

    A value that contains itself, bytes that are no text, or a number of thousands of digits, is its `repr`.
    """
    try:
        found = to_jsonable_python(value, inf_nan_mode="null", serialize_unknown=True)
        json.dumps(found)
    except Exception:
        return safe_repr(value)
    return found


def print_answer(value: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print the answer of a command: as JSON for programs, or in lines for people, which the terminal breaks."""
    if as_json:
        print_json(value)
    else:
        for line in lines:
            console().print(line, soft_wrap=True)


def safe_repr(value: Any) -> str:
    """Return the value's `repr`, or its class where that fails."""
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__}: its repr fails>"


def print_pairs(pairs: Mapping[str, Any]) -> None:
    """Print one line for each pair, with the values aligned."""
    table = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        table.add_row(SafeText(name, style="dim"), value if isinstance(value, SafeText) else SafeText(str(value)))
    console().print(table)


def new_table(*columns: str) -> Table:
    """Return an empty table with these column names."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    return table


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, by_end: bool = False) -> None:
    """Print a table of one line per row, without the columns that are empty; nothing if there is no row.

    On a narrow terminal the first column is cut to the ends that tell its texts apart, if `by_end`. Then columns before
    the last are left out from the right. Where the essential ones have no room either, each of their cells is a line.
    """
    if not rows:
        return
    screen = console()
    table = fitting_table(columns, rows, screen.width, essential=len(columns) if by_end else ESSENTIAL_COLUMNS)
    if table is None and by_end:
        rows = [(end, *row[1:]) for end, row in zip(ends_of([row[0] for row in rows]), rows, strict=True)]
        table = fitting_table(columns, rows, screen.width)
    if table is not None:
        screen.print(table)
        return
    for row in rows:
        texts = [_text(cell) for cell in (*row[:ESSENTIAL_COLUMNS], *row[ESSENTIAL_COLUMNS:][-1:])]
        screen.print(SafeText("\n  ").join(text for text in texts if text.plain))


def fitting_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int, *, essential: int = ESSENTIAL_COLUMNS
) -> Table | None:
    """Return a table of these rows whose last column is cut, and others left out, to fit the `width` of the screen.

    None where the first `essential` columns and the last one do not fit.
    """
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max([len(name), *(row[at].cell_len for row in texts)]) for at, name in enumerate(columns)]
    kept = [at for at in range(len(columns)) if any(row[at].plain for row in texts)]
    while (room := width - sum(widths[at] + 2 for at in kept[:-1])) < min(MIN_LAST_COLUMN, widths[kept[-1]]):
        if len(kept) <= essential + 1:
            return None
        del kept[-2]
    table = new_table(*(columns[at] for at in kept))
    table.columns[-1].max_width = room
    for row in texts:
        table.add_row(*(row[at] for at in kept))
    return table


def ends_of(ids: Sequence[str]) -> list[str]:
    """Return the shortest ends that tell these ids apart: ids begin with a time, so those of one hour begin alike."""
    length = MIN_ID_END
    while len({each[-length:] for each in ids}) < len(set(ids)):
        length += 1
    return [each if len(each) <= length + 1 else f"{CUT}{each[-length:]}" for each in ids]


def _text(cell: Any) -> SafeText:
    if isinstance(cell, dict):
        cell = ", ".join(f"{name} {value}" for name, value in cell.items())
    return cell if isinstance(cell, SafeText) else SafeText("" if cell is None else escaped(str(cell)))


def without_secrets(finding: Finding) -> Finding:
    """Return the finding without passwords: it may quote a URL, or a library that quotes one, and is sent around."""
    found, way_out = redacted(finding.found), redacted(finding.way_out)
    return dataclasses.replace(finding, found=found, way_out=way_out)


def print_error(error: object) -> None:
    """Print on stderr, in one line, why the command failed."""
    print_note(SafeText(f"executor-adapter: {escaped(redacted(str(error)))}", style="red"))


def print_note(text: SafeText) -> None:
    """Print a line on stderr."""
    SafeConsole(stderr=True, soft_wrap=True).print(text)


def prepare_output() -> None:
    """Make stdout and stderr accept any text: letters that the encoding lacks are escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # It was closed from the start.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def status_text(status: JobStatus, note: str = "") -> SafeText:
    """Return the status in its colour, with what it does not say itself."""
    text = SafeText(str(status), style=STYLES[status])
    return text.append(f" ({note})", style="red") if note else text


def clock_time(timestamp: float | None) -> str:
    """Return a local time of day, with the date unless it is today."""
    if timestamp is None:
        return ""
    at = datetime.fromtimestamp(timestamp)
    return at.strftime("%H:%M:%S" if at.date() == datetime.now().date() else "%Y-%m-%d %H:%M")


def seconds(value: float | None) -> str:
    """Return a duration as text: 0.42 s, 12.3 s, 3 min 20 s, 2 h 05 min."""
    if value is None:
        return ""
    if value < 10:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def share(value: float | None) -> str:
    """Return a share as a percentage."""
    return "" if value is None else f"{value:.1%}"
