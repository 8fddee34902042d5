"""The output of commands: tables for people, JSON for programs, colours on a terminal only."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import NoneType
from typing import Annotated, Any, cast

import typer
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

CLOSED_OUTPUT = 141
"""Exit code of a command whose reader left, as in `jobs list | head -1`: what a shell reports for SIGPIPE."""

STYLES: dict[JobStatus, str] = {
    JobStatus.PENDING: "dim",
    JobStatus.RUNNING: "cyan",
    JobStatus.RETRYING: "yellow",
    JobStatus.COMPLETED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "magenta",
}


class ClosedOutputError(Exception):
    """The reader of this command's output has left, so the command need not go on."""


_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""Control characters of both sets (C0 and C1), line feeds excepted."""


def console() -> SafeConsole:
    """Return a console for stdout."""
    return SafeConsole(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_json(value: Any) -> None:
    """Print one JSON document: indented on a terminal, on one line otherwise. Any `value` gives valid JSON."""
    # In UTF-8, what cannot be printed is escaped as in JSON; in other encodings it is not.
    is_utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    typer.echo(json_text(plain(value), indent=2 if sys.stdout.isatty() else None, ascii_only=not is_utf8))


def print_answer(value: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print the answer of a command: as JSON for programs, or in lines for people, which the terminal breaks."""
    if as_json:
        print_json(value)
    else:
        for line in lines:
            console().print(line, soft_wrap=True)


def json_text(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Return readable JSON without control characters: `json` escapes those of ASCII only."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def plain(value: Any) -> Any:
    """Return `value` as JSON can hold it.

    Other keys than JSON's become text; NaN and the infinities become null, as in JavaScript; any other object becomes
    its `str`. A value that contains itself, or whose own code fails, becomes its `repr`.
    """
    try:
        converted = _converted(value)
        json.dumps(converted)
    except Exception:
        return safe_repr(value)
    return converted


def _converted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key if isinstance(key, _JSON_KEYS) else str(key): _converted(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_converted(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


_JSON_KEYS = (str, int, float, NoneType)


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


class _OutputFile(io.FileIO):
    """File descriptor of stdout or stderr that may be a pipe without a reader."""

    def __init__(self, descriptor: int, *, needs_reader: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.needs_reader = needs_reader
        """Whether writing without a reader raises ClosedOutputError; otherwise the text is discarded."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            # Not an OSError, which rich, typer and a job's function would each treat in a way of their own.
            if self.needs_reader:
                raise ClosedOutputError from None
            return len(data)


def prepare_output() -> None:
    """Make stdout and stderr accept any text, and end the command when the reader of stdout leaves.

    Letters that the encoding lacks are escaped. What goes to a stream that was closed from the start is discarded.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            with contextlib.suppress(io.UnsupportedOperation):  # It is a stream in memory, as in a test.
                file = _OutputFile(stream.fileno(), needs_reader=name == "stdout")
                setattr(sys, name, _text_stream(file, like=stream))


def _text_stream(file: _OutputFile, *, like: io.TextIOWrapper) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        cast("io.BufferedWriter", file) if like.write_through else io.BufferedWriter(file),
        encoding=like.encoding,
        errors=like.errors,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )


def continue_without_reader() -> None:
    """Discard what is printed to stdout once its reader has left, instead of ending the command."""
    buffer = getattr(sys.stdout, "buffer", None)
    file = getattr(buffer, "raw", buffer)
    if isinstance(file, _OutputFile):
        file.needs_reader = False


def flush_output() -> None:
    """Write what is buffered now: a failure when the interpreter exits would change the exit code to 120.

    Raises:
        ClosedOutputError: The reader of stdout has left.
    """
    sys.stdout.flush()
    sys.stderr.flush()


def discard_output() -> None:
    """Discard what is buffered for stdout, and what is printed to it from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


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
