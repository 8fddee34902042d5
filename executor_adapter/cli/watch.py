"""`jobs watch`: a live view of a store's jobs, redrawn several times per second."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live

from executor_adapter.cli.jobs import QueueOption, ToolOption, TypeOption, error_line, note_on
from executor_adapter.cli.output import (
    STYLES,
    JsonOption,
    console,
    ends_of,
    fitting_table,
    print_json,
    seconds,
    status_text,
)
from executor_adapter.cli.stores import ConfigOption, StoreOption, opened
from executor_adapter.cli.waits import jobs_of_gone_hosts
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.job import TERMINAL, JobStatus
from executor_adapter.store import JobFilter, JobRecord, JobStore, StoreUnavailableError
from executor_adapter.terminal import SafeText

COLUMNS = ("ID", "STATUS", "TYPE", "TOOL", "TRY", "FOR", "PROGRESS")
MAX_RECENT = 5
"""The number of recently ended jobs that are shown below the live ones."""
RESERVED_LINES = 4 + MAX_RECENT
"""Lines of the screen that live jobs do not use."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """Holds what the screen shows at one moment."""

    counts: dict[JobStatus, int]
    live: Sequence[JobRecord]
    total_live: int
    recent: Sequence[JobRecord]
    at: float
    gone: frozenset[str]
    """The ids of the live jobs whose host is gone."""


def read_frame(store: JobStore, wanted: JobFilter, lines: int) -> Frame:
    """Read the current frame, with at most `lines` live jobs: running ones first, then waiting ones."""
    counts, lines_left = store.counts(wanted), lines
    live: list[JobRecord] = []
    for status in (JobStatus.RUNNING, JobStatus.RETRYING, JobStatus.PENDING):
        if lines_left > 0 and counts[status]:
            matching = dataclasses.replace(wanted, statuses=frozenset({status}))
            found = store.find(matching, limit=lines_left, newest_first=False).records
            live += found
            lines_left -= len(found)
    ended = dataclasses.replace(wanted, statuses=TERMINAL)
    return Frame(
        counts=counts,
        live=live,
        total_live=sum(count for status, count in counts.items() if status not in TERMINAL),
        recent=store.find(ended, limit=MAX_RECENT).records,
        at=time.time(),
        gone=jobs_of_gone_hosts(store, live),
    )


def render(frame: Frame, width: int) -> Group:
    """Draw a frame for a screen of `width` columns: counts, and a table of live jobs and of those that ended last."""
    counts = [(f"{count:,} {status}", STYLES[status] if count else "dim") for status, count in frame.counts.items()]
    records = [*frame.live, *frame.recent]
    names = ends_of([record.job_id for record in records])
    rows = [_row(record, name, frame) for record, name in zip(records, names, strict=True)]
    table: Any = SafeText()
    if rows:
        table = fitting_table(COLUMNS, rows, width, essential=1) or SafeText("the terminal is too narrow")
    hidden = frame.total_live - len(frame.live)
    more = SafeText(f"and {hidden:,} more" if hidden > 0 else "", style="dim")
    return Group(SafeText("   ").join(SafeText(*count) for count in counts), SafeText(), table, more)


def _row(record: JobRecord, name: str, frame: Frame) -> list[Any]:
    has_ended = record.status in TERMINAL
    lasts = record.duration if has_ended else frame.at - (record.started_at or record.created_at)
    status = status_text(record.status, "" if has_ended else note_on(record, frame.gone))
    return [name, status, record.job_type, record.tool_name, record.attempt or "", seconds(lasts), _progress(record)]


def _progress(record: JobRecord) -> SafeText:
    """Return how far a job is, or the error with which its last attempt ended."""
    progress = record.progress
    if record.status in TERMINAL or record.status is JobStatus.RETRYING:
        return SafeText(error_line(record), style=STYLES[record.status])
    if progress is None:
        return SafeText()
    if not progress.total:
        return SafeText(f"{progress.done:g} {progress.message}".strip())
    done = max(0.0, min(1.0, progress.done / progress.total))
    bar = "━" * round(10 * done)
    line = SafeText(f"{done:4.0%} ").append(bar, style="cyan").append("━" * (10 - len(bar)), style="dim")
    return line.append(f" {progress.message}")


def watch(
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.05, max=86400, help="Seconds between frames.")
    ] = 0.5,
    until_done: Annotated[bool, typer.Option("--until-done", help="Stop when no job is live.")] = False,
    job_type: TypeOption = None,
    tool: ToolOption = None,
    queue: QueueOption = None,
    store: StoreOption = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Watch jobs live, until Ctrl-C. With --json, print a line of counts for each frame."""
    wanted = JobFilter(job_type=job_type, tool_name=tool, queue=queue)
    with opened(store, config_file) as opened_store:
        try:
            (_print_counts if as_json else _show)(partial(read_frame, opened_store, wanted), interval, until_done)
        except KeyboardInterrupt:
            return


def _print_counts(read: Callable[[int], Frame], interval: float, until_done: bool) -> None:
    while True:
        frame = read(0)
        print_json({str(status): count for status, count in frame.counts.items()})
        if until_done and not frame.total_live:
            return
        time.sleep(interval)


def _show(read: Callable[[int], Frame], interval: float, until_done: bool) -> None:
    screen = console()
    if not screen.is_terminal:
        raise ConfigurationError("jobs watch needs a terminal: use --json, or jobs list")
    with Live(console=screen, screen=True, auto_refresh=False) as live:
        due, frame = time.monotonic(), None
        while frame is None or frame.total_live or not until_done:
            try:
                frame = read(max(1, screen.height - RESERVED_LINES))
                live.update(render(frame, screen.width), refresh=True)
            except StoreUnavailableError as error:
                live.update(SafeText(f"{error}\nretrying", style="red"), refresh=True)
            due = max(due + interval, time.monotonic())  # A late frame is skipped, not caught up with.
            time.sleep(max(0.0, due - time.monotonic()))
