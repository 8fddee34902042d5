"""`jobs watch`: a live view of a store's jobs, redrawn a few times a second."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from executor_adapter.cli.jobs import QueueOption, ToolOption, TypeOption, first_line
from executor_adapter.cli.output import STYLES, JsonOption, console, new_table, print_json, seconds, status_text
from executor_adapter.cli.stores import ConfigOption, StoreOption, opened
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.job.status import TERMINAL, JobStatus
from executor_adapter.store import JobFilter, JobRecord, JobStore, StoreUnavailableError

LIVE_STATUSES = frozenset(JobStatus) - TERMINAL
COLUMNS = ("ID", "STATUS", "TYPE", "TOOL", "TRY", "FOR", "PROGRESS")
RECENT = 5
"""Jobs that ended last and are shown below the live ones."""
RESERVED = 4 + RECENT
"""Lines of the screen that are not for live jobs."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """What one frame shows."""

    counts: dict[JobStatus, int]
    live: tuple[JobRecord, ...]
    total_live: int
    recent: tuple[JobRecord, ...]
    at: float


class View:
    """Looks at a store for each frame; only as many jobs as the screen has lines for are asked for."""

    def __init__(self, store: JobStore, wanted: JobFilter, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._wanted = wanted
        self._clock = clock

    def scene(self, lines: int) -> Scene:
        """What is so now; at most `lines` live jobs: those that run first, then those that wait."""
        counts, left = self._store.counts(self._wanted), lines
        live: list[JobRecord] = []
        for status in (JobStatus.RUNNING, JobStatus.RETRYING, JobStatus.PENDING):
            if left > 0 and counts[status]:
                asked = dataclasses.replace(self._wanted, statuses=frozenset({status}))
                found = self._store.find(asked, limit=left, newest_first=False).records
                live += found
                left -= len(found)
        over = dataclasses.replace(self._wanted, statuses=TERMINAL)
        recent = self._store.find(over, limit=RECENT).records
        total = sum(counts[status] for status in LIVE_STATUSES)
        return Scene(counts=counts, live=tuple(live), total_live=total, recent=recent, at=self._clock())


def render(scene: Scene) -> Group:
    """The frame: counts, live jobs, and those that ended last."""
    head = Text()
    for status, count in scene.counts.items():
        head.append(f"{count:,} {status}   ", style=STYLES[status] if count else "dim")
    parts: list[Any] = [head, Text()]
    if scene.live:
        parts.append(_live_table(scene))
    hidden = scene.total_live - len(scene.live)
    parts.append(Text(f"and {hidden:,} more" if hidden > 0 else "", style="dim"))
    parts += [_ended_line(record) for record in scene.recent]
    return Group(*parts)


def _live_table(scene: Scene) -> Table:
    table = new_table(*COLUMNS)
    for record in scene.live:
        since = record.started_at or record.created_at
        cells = [record.job_type, record.tool_name or "", str(record.attempt or ""), seconds(scene.at - since)]
        table.add_row(record.job_id, status_text(record.status), *map(Text, cells), _progress(record))
    return table


def _progress(record: JobRecord) -> Text:
    progress = record.progress
    if record.status is JobStatus.RETRYING:
        return Text(f"{record.error_code}: {first_line(record.error_message)}", style="yellow")
    if progress is None:
        return Text()
    if not progress.total:
        return Text(f"{progress.done:g} {progress.message}".strip())
    done = max(0.0, min(1.0, progress.done / progress.total))
    bar = "━" * round(20 * done)
    return Text(bar, style="cyan").append("━" * (20 - len(bar)), style="dim").append(f" {done:4.0%} {progress.message}")


def _ended_line(record: JobRecord) -> Text:
    line = Text(f"{record.job_id}  ", style="dim", no_wrap=True, overflow="ellipsis").append(status_text(record.status))
    line.append(f"  {record.job_type} {record.tool_name or ''} {seconds(record.duration)}")
    if record.error_code is not None:
        line.append(f"  {record.error_code}: {first_line(record.error_message)}", style="red")
    return line


def watch(
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.05, max=86400, help="Seconds a frame.")] = 0.5,
    until_done: Annotated[bool, typer.Option("--until-done", help="End when no job is live.")] = False,
    job_type: TypeOption = None,
    tool: ToolOption = None,
    queue: QueueOption = None,
    store: StoreOption = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Watch jobs live; Ctrl-C ends it. With --json, one line of counts for each look."""
    wanted = JobFilter(job_type=job_type, tool_name=tool, queue=queue)
    with opened(store, config_file) as opened_store:
        view = View(opened_store, wanted)
        try:
            _print_counts(view, interval, until_done) if as_json else _show(view, interval, until_done)
        except KeyboardInterrupt:
            return


def _print_counts(view: View, interval: float, until_done: bool) -> None:
    while True:
        scene = view.scene(0)
        print_json({str(status): count for status, count in scene.counts.items()})
        if until_done and not scene.total_live:
            return
        time.sleep(interval)


def _show(view: View, interval: float, until_done: bool) -> None:
    screen = console()
    if not screen.is_terminal:
        raise ConfigurationError("jobs watch needs a terminal: use --json, or jobs list")
    with Live(console=screen, screen=True, auto_refresh=False) as live:
        due, scene = time.monotonic(), None
        while scene is None or scene.total_live or not until_done:
            try:
                scene = view.scene(max(1, screen.height - RESERVED))
                live.update(render(scene), refresh=True)
            except StoreUnavailableError as error:
                live.update(Text(f"{error}\ntrying again", style="red"), refresh=True)
            due = max(due + interval, time.monotonic())  # late ones are left out, not caught up with
            time.sleep(max(0.0, due - time.monotonic()))
