"""`jobs watch`: a live view of a store's jobs, redrawn several times per second."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
RESERVED_LINES = 4
"""Lines of the screen that jobs do not use."""
INTERVAL = 0.5
"""Seconds between frames."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """Holds what the screen shows at one moment."""

    counts: dict[JobStatus, int]
    live: Sequence[JobRecord]
    total_live: int
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
    return Frame(
        counts=counts,
        live=live,
        total_live=sum(count for status, count in counts.items() if status not in TERMINAL),
        at=time.time(),
        gone=jobs_of_gone_hosts(store, live),
    )


def render(frame: Frame, width: int) -> Group:
    """Draw a frame for a screen of `width` columns: counts, and a table of live jobs."""
    counts = [(f"{count:,} {status}", STYLES[status] if count else "dim") for status, count in frame.counts.items()]
    names = ends_of([record.job_id for record in frame.live])
    rows = [_row(record, name, frame) for record, name in zip(frame.live, names, strict=True)]
    table: Any = SafeText()
    if rows:
        table = fitting_table(COLUMNS, rows, width, essential=1) or SafeText("the terminal is too narrow")
    hidden = frame.total_live - len(frame.live)
    more = SafeText(f"and {hidden:,} more" if hidden > 0 else "", style="dim")
    return Group(SafeText("   ").join(SafeText(*count) for count in counts), SafeText(), table, more)


def _row(record: JobRecord, name: str, frame: Frame) -> list[Any]:
    lasts = frame.at - (record.started_at or record.created_at)
    status = status_text(record.status, note_on(record, frame.gone))
    return [name, status, record.job_type, record.tool_name, record.attempt or "", seconds(lasts), _progress(record)]


def _progress(record: JobRecord) -> SafeText:
    """Return how far a job is, or the error with which its last attempt ended."""
    progress = record.progress
    if record.status is JobStatus.RETRYING:
        return SafeText(error_line(record), style=STYLES[record.status])
    if progress is None:
        return SafeText()
    if not progress.total:
        return SafeText(f"{progress.done:g} {progress.message}".strip())
    return SafeText(f"{progress.done / progress.total:4.0%} {progress.message}")


def watch(
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
            (_print_counts if as_json else _show)(partial(read_frame, opened_store, wanted))
        except KeyboardInterrupt:
            return


def _print_counts(read: Callable[[int], Frame]) -> None:
    while True:
        print_json({str(status): count for status, count in read(0).counts.items()})
        time.sleep(INTERVAL)


def _show(read: Callable[[int], Frame]) -> None:
    screen = console()
    if not screen.is_terminal:
        raise ConfigurationError("jobs watch needs a terminal: use --json, or jobs list")
    with Live(console=screen, screen=True, auto_refresh=False) as live:
        while True:
            try:
                frame = read(max(1, screen.height - RESERVED_LINES))
                live.update(render(frame, screen.width), refresh=True)
            except StoreUnavailableError as error:
                live.update(SafeText(f"{error}\nretrying", style="red"), refresh=True)
            time.sleep(INTERVAL)
